"""`resetguard demo`: the main job on the sample that ships with resetguard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from statemachine.cli import console
from statemachine.cli.process import Job, run_and_tell
from statemachine.ingest import Options

SAMPLE: Final = Path(__file__).parent / "sample.csv"
HINTS: Final = (
    "",
    "Look around in it:",
    "  resetguard users --store {store}",
    "  resetguard audit list --store {store}",
    "  resetguard quarantine list --store {store}",
)


def demo(
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="Directory of the store.")] = Path("resetguard-demo"),
    json: Annotated[bool, console.JSON] = False,
) -> None:
    """Process the sample that ships with resetguard: generated users with gaps, wrong entries and a reset that fails.

    It exits with 0 although resets fail in it: they are what it shows.

    Example: resetguard demo --store ./resetguard-demo
    """
    with console.command():
        run_and_tell(Job((str(SAMPLE),), store, Options(), "group", stream=False), json=json)
        if not json:
            for hint in HINTS:
                console.OUT.print(hint.format(store=store), markup=False, soft_wrap=True)
