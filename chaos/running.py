"""The commands that try to break the library: `list`, `run`, `replay` and `canaries`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import msgspec
import structlog
import typer
import xxhash
from rich.text import Text

from chaos import campaign, experiment, reports, showing
from chaos.campaign import Asked, Finding, Ran
from chaos.experiment import BadExperiment, Experiment
from chaos.history import Made
from chaos.planted import PLANTED
from chaos.suite import Plan, Suite
from chaos.suites import SUITES
from chaos.target import BadTarget, Target, load

PASSED: Final = 0
BROKEN: Final = 1
WRONG_USE: Final = 2
INTERRUPTED: Final = 130
BUDGET_OF_CANARY_S: Final = 60.0
SAVED_MAX: Final = 20

TargetOption = Annotated[str | None, typer.Option("--target", metavar="MODULE:FACTORY", show_default=False, help=(
    "A function without arguments that returns a chaos.Target: your own state, rules and mutations."))]
FINDINGS: Final = Path("chaos-findings")
FindingsOption = Annotated[Path, typer.Option("--findings", metavar="DIR", help="Where what is found is written.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed tries the same points.")]


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.command("list")(list_suites)
    app.command("run")(run)
    app.command("replay")(replay)
    app.command("canaries")(canaries)


def list_suites() -> None:
    """Name the suites, with what each does and whether it can run here.

    Example: python -m chaos list
    """
    showing.OUT.print(showing.listing(_made()))


def run(  # noqa: PLR0913 - each is an option
    suite: Annotated[list[str] | None, typer.Option("--suite", metavar="S", show_default=False, help=(
        "Only this suite; may be repeated. `python -m chaos list` names them."))] = None,
    seed: SeedOption = 1,
    plan: Annotated[str, typer.Option("--plan", metavar="short|full", help=(
        "short: about 90 s on two processors. full: ten times as many points."))] = "short",
    budget: Annotated[str | None, typer.Option("--budget", metavar="60s", show_default=False, help=(
        "Stop after this time, with a part of the plan; below the plan's floor that ends with 1."))] = None,
    target: TargetOption = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, metavar="N", show_default=False, help=(
        "How many processes work at once, by default one for each processor."))] = None,
    experiment_file: Annotated[Path | None, typer.Option("--experiment", metavar="FILE", show_default=False, help=(
        "A TOML file with a steady state that is checked before and after; it stands for the options above."))] = None,
    findings: FindingsOption = FINDINGS,
    json: Annotated[Path | None, typer.Option("--json", metavar="F", show_default=False, help="Write results as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="F", show_default=False, help="Write JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="F", show_default=False, help="Write one page.")] = None,
    plant: Annotated[str | None, typer.Option("--plant", metavar="BUG", show_default=False, help=(
        "Plant one of the bugs of `python -m chaos canaries` first, to see it found."))] = None,
) -> None:
    """Try to break the library, and show what survived what.

    Exits with 0 when every promise held, every suite reached its floor and every outcome that must occur did; with 1
    otherwise; with 2 for wrong use; with 130 after Ctrl-C.

    Example: python -m chaos run --seed 1 --plan short --target ours.chaos:target --html survival.html
    """
    with _errors():
        said = Experiment(target=target, suites=tuple(suite or ()), plan=_plan(plan), seed=seed, budget=budget)
        if experiment_file is not None:
            said = experiment.read(experiment_file)
        wanted, suites = load(said.target), _made()
        asked = Asked(_chosen(said.suites), said.seed, said.plan, said.target or "", experiment.seconds(said.budget),
                      workers or len(os.sched_getaffinity(0)), plant or "")
        _require_places(findings, json, junit, html)
        steady = _Steady(said, wanted)
        steady.require("before")
        began = time.monotonic()
        with _planted(asked.planted), _quiet():
            ran, whole = _watched(asked, wanted, suites)
        seconds = time.monotonic() - began
        saved = [(finding, str(_save(findings, finding))) for one in ran for finding in one.findings[:SAVED_MAX]]
        _show(ran, saved, seconds)
        whole_of = reports.Report(asked, Made(wanted.name, asked.seed), ran, seconds, saved)
        for path, write in ((json, reports.write_json), (junit, reports.write_junit), (html, reports.write_html)):
            if path is not None:
                write(path, whole_of)
        steady.require("after")
        if not whole:
            showing.ERR.print("chaos: interrupted; what is above is a part of the plan")
            raise typer.Exit(INTERRUPTED)
        if any(one.failures for one in ran):
            raise typer.Exit(BROKEN)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A finding that `run` wrote.")],
) -> None:
    """Do one finding again; exits with 1 when the promise breaks again or the fault does not fire, with 0 when it holds now.

    Example: python -m chaos replay chaos-findings/power-0123456789abcdef.json
    """
    with _errors():
        try:
            finding = msgspec.json.decode(file.read_bytes(), type=Finding)
        except (OSError, msgspec.MsgspecError) as error:
            message = f"{file}: {error}; give a file that `python -m chaos run` wrote into its findings"
            raise BadExperiment(message) from error
        suites, point = _made(), finding.verdict.point
        _chosen((point.suite,))
        with _planted(finding.planted), _quiet():
            try:
                verdict = campaign.replay(finding, load(finding.target or None), suites)
            except campaign.NoSuchPoint as error:
                message = f"{file}: {error}; replay it with what its `made` names, or run the campaign again"
                raise BadExperiment(message) from error
        showing.OUT.print(Text(str(point)))
        showing.OUT.print(Text(f"  outcome: {verdict.outcome}"))
        for violation in verdict.violations:
            showing.OUT.print(Text(f"  {violation}", style="red"))
        if not verdict.fired:
            showing.OUT.print(Text("  the fault did not fire, so nothing was tried", style="red"))
        if verdict.violations or not verdict.fired:
            raise typer.Exit(BROKEN)
        showing.OUT.print("  every promise holds")


def canaries(
    name: Annotated[list[str] | None, typer.Argument(metavar="[BUG]...", show_default=False, help="Only these bugs.")] = None,
    seed: SeedOption = 1,
    findings: FindingsOption = FINDINGS,
) -> None:
    """Plant one bug after the other in the library, and see each found by the promise that it breaks.

    Exits with 1 where a bug was not found within 60 s, or by another promise alone.

    Example: python -m chaos canaries "told before the commit"
    """
    with _errors(), _quiet():
        for bug in name or ():
            _known("bug", bug, PLANTED)
        suites, missed = _made(), 0
        for bug in name or PLANTED:
            sought = PLANTED[bug]
            asked = Asked((sought.suite,), seed, budget_s=BUDGET_OF_CANARY_S, workers=len(os.sched_getaffinity(0)), planted=bug)
            found = _hunt(asked, suites, sought.promise)
            missed += found is None
            if found is None:
                showing.OUT.print(Text(f"MISSED {bug:28} {sought.what}", style="red"))
                continue
            path = _save(findings, found.finding)
            showing.OUT.print(Text(f"found  {bug:28} by {sought.promise} in {sought.suite}, {found.seconds:.1f} s"))
            showing.OUT.print(Text(f"       python -m chaos replay {path}"))
        if missed:
            raise typer.Exit(BROKEN)


def campaigned(  # noqa: PLR0913 - each is an option
    suite: str, *, target: str | None, seed: int, plan: Plan, budget: str | None, among: int = 1,
) -> tuple[Ran, list[tuple[Finding, str]]]:
    """One suite run as a campaign of its own: what it came to, and its findings with the files they were written to.

    `budget` is shared evenly `among` so many suites.
    """
    wanted, whole = load(target), experiment.seconds(budget)
    asked = Asked((suite,), seed, plan, target or "", None if whole is None else whole / among, len(os.sched_getaffinity(0)))
    with _quiet():
        ran, = campaign.run(asked, wanted, _made())
    return ran, [(finding, str(_save(FINDINGS, finding))) for finding in ran.findings[:SAVED_MAX]]


class _Found(NamedTuple):
    finding: Finding
    seconds: float


class _Enough(Exception):
    """The bug that was planted is found."""


def _hunt(asked: Asked, suites: dict[str, Suite], promise: str) -> _Found | None:
    """Run one suite until a finding names the promise; None where none does within the budget."""
    began, found = time.monotonic(), list[Finding]()

    def watching(ran: list[Ran], _trying: str) -> None:
        found.extend(f for one in ran for f in one.findings if any(v.startswith(f"{promise}:") for v in f.verdict.violations))
        if found:
            raise _Enough

    with _planted(asked.planted), contextlib.suppress(_Enough):
        campaign.run(asked, Target(), suites, watching)
    return _Found(found[0], time.monotonic() - began) if found else None


def _watched(asked: Asked, target: Target, suites: dict[str, Suite]) -> tuple[list[Ran], bool]:
    """What the suites came to, and whether they came to their end or Ctrl-C ended them."""
    seen: list[Ran] = []

    def watching(ran: list[Ran], trying: str) -> None:
        seen[:] = ran
        bar.watch(ran, trying)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a CI cancels: nothing may be left behind then, too
    with showing.Bar(showing.ERR, asked.budget_s, asked.workers) as bar:
        try:
            return campaign.run(asked, target, suites, watching), True
        except KeyboardInterrupt:
            return seen, False
        finally:
            signal.signal(signal.SIGTERM, before)


def _show(ran: list[Ran], saved: list[tuple[Finding, str]], seconds: float) -> None:
    for part in showing.matrix(ran, showing.OUT.width):
        showing.OUT.print(part)
    showing.OUT.print(showing.findings(saved))
    fired, broken = sum(one.fired for one in ran), sum(one.broken for one in ran)
    word = "FAILED" if any(one.failures for one in ran) else "passed"
    showing.OUT.print(f"{word}: {fired:,} faults, {broken:,} broke a promise, {seconds:.0f} s", markup=False)
    for one in ran:
        if one.unavailable:
            showing.ERR.print(Text(f"chaos: the suite {one.suite} was NOT RUN: {one.unavailable}", style="red"))
        for fault in sorted(one.untried):
            why = "; ".join(one.untried[fault])
            showing.ERR.print(Text(f"chaos: the fault {fault} of {one.suite} was NOT TRIED: {why}", style="red"))


def _require_places(findings: Path, *files: Path | None) -> None:
    """What a campaign of minutes finds must not be lost at its end; raises OSError for a place that cannot be written."""
    for path in filter(None, files):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    for path in (findings, *filter(None, files)):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if path is findings and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _save(directory: Path, finding: Finding) -> Path:
    """Write a finding where `replay` can read it; equal findings have one file."""
    directory.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(finding), indent=1)
    path = directory / f"{finding.verdict.point.suite}-{xxhash.xxh3_64_hexdigest(data)}.json"
    path.write_bytes(data + b"\n")
    return path


class _Steady:
    """The steady state of an experiment."""

    def __init__(self, said: Experiment, target: Target) -> None:
        self._said = said
        self._target = target

    def require(self, when: str) -> None:
        """Leave with 1, naming why, unless it holds."""
        why = list(experiment.unsteady(self._said.steady_state, self._target))
        for one in why:
            showing.ERR.print(Text(f"chaos: {when} the faults the steady state does not hold: {one}", style="red"))
        if why:
            raise typer.Exit(BROKEN)


def _made() -> dict[str, Suite]:
    return {name: making() for name, making in SUITES.items()}


def _chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        _known("suite", name, SUITES)
    return campaign.select(names, SUITES)


def _known(what: str, name: str, known: Any) -> None:
    if name not in known:
        message = f"no {what} is called {name!r}; known: {'; '.join(known) if what == 'bug' else ', '.join(known)}"
        raise BadExperiment(message)


def _plan(name: str) -> Plan:
    if name == "short":
        return "short"
    if name == "full":
        return "full"
    message = f"no plan is called {name!r}; known: short, full"
    raise BadExperiment(message)


@contextlib.contextmanager
def _planted(name: str) -> Iterator[None]:
    if not name:
        yield
        return
    _known("bug", name, PLANTED)
    with PLANTED[name].plant():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's events would drown what is shown; a campaign reads the audit log itself."""
    known, before = structlog.is_configured(), structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.reset_defaults()
        if known:
            structlog.configure(**before)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Around a command's body: wrong use becomes one line and exit code 2."""
    sys.path.insert(0, str(Path.cwd()))  # a target next to where the command is called
    try:
        yield
    except (BadTarget, BadExperiment) as error:
        _leave(str(error), WRONG_USE)
    except OSError as error:
        _leave(f"{error.filename}: {error.strerror}; name a place that can be written", WRONG_USE)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    finally:
        sys.path.pop(0)


def _leave(message: str, code: int) -> NoReturn:
    showing.ERR.print(Text(f"chaos: error: {message}"), soft_wrap=True)
    raise typer.Exit(code)
