"""`python -m chaos`: what tries to break the library, and what holds it to its model."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import typer

try:
    from chaos import running
    from chaos.conform import conforming
    from chaos.model import obligations, spin, tied
    from chaos.model.obligations import Verdict
except ModuleNotFoundError as missing:
    if missing.name != "greenlet":
        raise
    sys.stderr.write("chaos: error: greenlet is not installed, which the extra brings: pip install 'resetguard[chaos]'\n")
    raise SystemExit(2) from missing

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Commands, each with its own help."""


@app.command("spec")
def spec(
    workers: Annotated[int | None, typer.Option(min=1, show_default=False, metavar="N", help=(
        "How many searches and drives run at once, by default one for each processor."))] = None,
) -> None:
    """Check the models of `specs/` with SPIN, refute each without its safeguards, and drive the library down every edge.

    Ends with 1 unless every property holds, every mutant is refuted, every named branch occurs and every edge is driven.

    Example: python -m chaos spec
    """
    try:
        spin.require()
    except spin.SpinMissing as error:
        typer.echo(f"chaos: error: {error}", err=True)
        raise typer.Exit(2) from error
    many = workers or len(os.sched_getaffinity(0))
    typer.echo(f"{'':4} {'kind':17} {'what':49} {'states':>11} {'edges':>12} {'s':>6}")
    failed = 0
    with ProcessPoolExecutor(many, multiprocessing.get_context("spawn")) as pool:
        begun = [obligations.claims(pool), tied.drives(pool), obligations.mutants(pool)]  # the longest ones first
        for verdict in itertools.chain(*begun):
            typer.echo(_line(verdict))
            failed += bool(verdict.why)
    typer.echo(f"{failed} not met" if failed else "all met")
    if failed:
        raise typer.Exit(1)


conforming.register(app)
running.register(app)


def _line(verdict: Verdict) -> str:
    states, edges, seconds = (f"{n:,}" if n else "" for n in (verdict.states, verdict.transitions, round(verdict.seconds, 1)))
    word = "FAIL" if verdict.why else "ok"
    line = f"{word:4} {verdict.kind:17} {verdict.name:49} {states:>11} {edges:>12} {seconds:>6}  {verdict.detail}".rstrip()
    return f"{line}\n     {verdict.why}" if verdict.why else line


if __name__ == "__main__":
    app()
