"""`resetguard demo`: the main job on the sample that ships with resetguard."""

from __future__ import annotations

import sys
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
    "  {command} users --store {store}",
    "  {command} audit list --store {store}",
    "  {command} quarantine list --store {store}",
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
                console.OUT.print(hint.format(command=_typed(), store=store), markup=False, soft_wrap=True)


def _typed() -> str:
    """The command as it was called, so that a hint can be typed as it stands."""
    called = sys.argv[0] if sys.argv else ""
    return called if Path(called).name == "resetguard" else "resetguard"
