"""A large export is read, sorted and processed in bounded memory."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

MEGABYTES = 300
RESIDENT_MIB_MAX = 300


def write_export(path: Path, size: int) -> int:
    """An Apple export of about `size` bytes, its records shuffled in blocks; how many there are."""
    rng = random.Random(1)
    at, weight, count, written = datetime(1985, 1, 1, tzinfo=UTC), 80.0, 0, 0
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n<HealthData locale="en_US">\n')
        block: list[str] = []
        while written < size:
            at += timedelta(minutes=rng.randint(5, 20))
            weight += rng.gauss(0, 0.01)
            stamp = at.strftime("%Y-%m-%d %H:%M:%S +0000")
            block.append(
                f' <Record type="HKQuantityTypeIdentifierBodyMass" sourceName="Scale" sourceVersion="5120300" unit="kg" '
                f'creationDate="{stamp}" startDate="{stamp}" endDate="{stamp}" value="{weight + rng.gauss(0, 0.3):.2f}"/>\n',
            )
            written += len(block[-1])
            if len(block) == 20_000:
                rng.shuffle(block)
                file.writelines(block)
                count += len(block)
                block = []
        file.writelines(block)
        file.write("</HealthData>\n")
    return count + len(block)


@pytest.mark.slow
def test_an_export_of_300_megabytes_runs_under_300_mib(tmp_path: Path) -> None:
    """The whole command, sorting included, stays under 300 MiB resident, the mapped store counted in."""
    source = tmp_path / "export.xml"
    count = write_export(source, MEGABYTES * 1_000_000)
    options = ["--user", "me", "--store", str(tmp_path / "s"), "--json"]
    command = [sys.executable, "-m", "statemachine.cli", "process", str(source), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    assert f'"read":{count},' in run.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 < RESIDENT_MIB_MAX
