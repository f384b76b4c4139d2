"""`resetguard process`: files or standard input into a store, every reset a transaction, and a summary of what happened."""

from __future__ import annotations

import gc
import hashlib
import queue
import re
import signal
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from statemachine.breaker import COUNT_MAX
from statemachine.cli import alerting, console
from statemachine.cli.summary import summary_tables
from statemachine.clock import SystemClock
from statemachine.errors import InvalidInput
from statemachine.estimator import BodyWeight, source_name
from statemachine.ingest import FORMATS, Options, OrderedRows, Row, open_source, sniff
from statemachine.manager import ResetManager
from statemachine.processor import STATUSES, Intake, Outcome, Processor, SourceRow
from statemachine.store import Durability, Store
from statemachine.store.records import Unreadable

CHUNK_BYTES: Final = 1 << 20
NIS_95: Final = 3.84
SOURCES_SHOWN_MAX: Final = 20
STDIN: Final = "-"
UNDONE: Final = ("rolled_back", "refused", "shadowed", "conflicted")
REASON_CHARS_MAX: Final = 100
_QUOTED: Final = re.compile(r"'[^']*'")
_NUMBER: Final = re.compile(r"\d[\d.,:TZ+-]*(?<![.,:])")
LIVE_ROWS_MAX: Final = 10_000
IDLE_S: Final = 0.25
GC_THRESHOLDS: Final = (200_000, 50, 50)


class Job(msgspec.Struct, frozen=True):
    """What one run of `process` is asked to do."""

    files: tuple[str, ...]
    store: Path
    options: Options
    durability: Durability
    stream: bool
    resets_per_minute: int | None = None


class Tally:
    """What a run has seen, kept as it goes; nothing of it is stored."""

    def __init__(self, store: Store) -> None:
        self.measurements: Counter[str] = Counter()
        self.users: set[str] = set()
        self.unknown_sources: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.nis: dict[str, tuple[int, float, int]] = dict.fromkeys(("accepted", "with_gated", "adapting"), (0, 0.0, 0))
        estimator = store.estimator
        self._sources = estimator.sources if isinstance(estimator, BodyWeight) else None
        self._listed: dict[str, bool] = {}

    def outcome(self, _number: int, outcome: Outcome) -> None:
        """Count one durable outcome."""
        self.measurements[outcome.status] += 1
        if outcome.status == "quarantined":
            self.reasons[alike(outcome.reason)] += 1
        nis = outcome.nis
        if nis is None:
            return
        if outcome.adapting:
            self._add("adapting", nis)
            return
        self._add("with_gated", nis)
        if outcome.status == "accepted":
            self._add("accepted", nis)

    def _add(self, name: str, nis: float) -> None:
        count, total, below = self.nis[name]
        self.nis[name] = (count + 1, total + nis, below + (nis < NIS_95))

    def row(self, row: Row) -> None:
        """Note the user and the source of a row that was read."""
        m = row.measurement
        if m is not None:
            self.users.add(m.user)
            listed = self._listed.get(m.source)
            if listed is None:
                listed = self._listed[m.source] = self._sources is None or source_name(m.source) in self._sources
            if not listed:
                self.unknown_sources[m.source] += 1


def alike(reason: str) -> str:
    """A reason without its own values, so that equal ones are counted together."""
    return textwrap.shorten(_NUMBER.sub("#", _QUOTED.sub("'...'", reason)), REASON_CHARS_MAX, placeholder=" ...")


class Stop:
    """Ctrl-C (or SIGTERM) asks for an end `where` the command can stop; a second one ends at once."""

    def __init__(self, where: str = "at the next commit") -> None:
        self.asked = False
        self._where = where
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Take the signals over, in the main thread of the command."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.say(f"stopping {self._where}; again to stop at once")


def process(  # noqa: PLR0913 - one parameter an option of the command
    files: Annotated[list[str], typer.Argument(help="Files to read; - is NDJSON on standard input.", metavar="FILE...")],
    store: Annotated[Path, console.STORE],
    form: Annotated[str | None, typer.Option("--format", help=f"Where it is not recognised: {', '.join(FORMATS)}.")] = None,
    user: Annotated[str | None, typer.Option(help="User of rows that name none.")] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of weights without one: kg, lb or st. Never guessed.")] = None,
    tz: Annotated[str | None, typer.Option(help="IANA zone of timestamps without an offset, such as Europe/Berlin.")] = None,
    durability: Annotated[str, typer.Option(help="each, group or process (survives a kill, not a power cut).")] = "group",
    stream: Annotated[bool, typer.Option("--stream", help="Process rows as they are read, instead of sorted by time.")] = False,
    resets_per_minute: Annotated[int | None, typer.Option(min=1, max=COUNT_MAX, show_default=False, metavar="N", help=(
        "Refuse resets beyond so many within a minute of event time, of all users; what they rest on is kept aside."))] = None,
    json: Annotated[bool, console.JSON] = False,
) -> None:
    """Process measurements into a store; every reset is a transaction, every row is accounted for.

    Run it again with the same files and nothing happens twice; killed at any instant, it goes on where it was.

    Example: resetguard process weights.csv --store ./state --unit kg --tz Europe/Berlin
    """
    with console.command():
        job = Job(tuple(files), store, Options(form, user, unit, tz), console.durability(durability), stream,
                  resets_per_minute)
        report = run_and_tell(job, json=json)
        resets = report["resets"]
        if report["measurements"]["quarantined"] or any(resets[name] for name in UNDONE):
            raise typer.Exit(console.FINDINGS)


def run_and_tell(job: Job, *, json: bool) -> dict[str, Any]:
    """Do the job, print its report, and leave with 130 when a signal cut it short."""
    report = run(job, quiet=json)
    if json:
        console.print_json(report)
    else:
        for part in summary_tables(report):
            console.OUT.print(part)
    if report["interrupted_by_signal"]:
        console.say("stopped at a commit; run it again to go on")
        raise typer.Exit(console.INTERRUPTED)
    return report


def run(job: Job, *, quiet: bool = True) -> dict[str, Any]:
    """Do the job and return its report, the document that `--json` prints; raises ResetError, having lost nothing.

    Without `stream` every file is read to its end before anything is processed, so that a broken file changes nothing.
    """
    # States and rows hold no cycles: a collector that walks them all again and again costs a fifth of the run.
    gc.set_threshold(*GC_THRESHOLDS)
    clock = SystemClock()
    began_us = clock.monotonic_us()
    sources = [(source_hash(name, job), name) for name in job.files]
    hashes = [key for key, _ in sources if key is not None]
    if len(set(hashes)) < len(hashes) or job.files.count(STDIN) > 1:
        message = f"a file is given twice, or two files are the same: {', '.join(job.files)}; give each once"
        raise InvalidInput(message)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        rows, total = _rows(job, stack, quiet=quiet)
        attach = stack.enter_context(alerting.attached(console.say))
        store = stack.enter_context(Store.open(job.store, durability=job.durability))
        attach(store)
        tally = Tally(store)
        first_seq = store.audit_tail()[0] + 1
        intake = Processor(ResetManager(store, resets_per_minute=job.resets_per_minute)).intake(sources, tally.outcome)
        _feed(intake, tally, rows, stop, _Bar(total, quiet=quiet))
        report = _report(job, store, intake, tally, first_seq)
    return {**report, "interrupted_by_signal": stop.asked, "seconds": round((clock.monotonic_us() - began_us) / 1e6, 3)}


def _feed(intake: Intake, tally: Tally, rows: Iterator[tuple[int, Row] | None], stop: Stop, bar: _Bar) -> None:
    with bar:
        for item in rows:
            if stop.asked:
                break
            if item is None:  # nothing has come for a while: what has may not wait for it
                intake.flush()
                continue
            number, row = item
            tally.row(row)
            unreadable = None if row.measurement is not None else Unreadable(row.line, row.raw, row.reason, row.user)
            intake.add(number, SourceRow(row.row, row.measurement, unreadable))
            bar.advance()
        intake.flush()


def source_hash(name: str, job: Job) -> bytes | None:
    """Sixteen bytes from a file's content and from all that changes what its rows mean; None for standard input."""
    if name == STDIN:
        return None
    if job.options.format is None:
        sniff(name)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(msgspec.json.encode([job.options, job.stream]))
    try:
        with Path(name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}; check the name and its permissions"
        raise InvalidInput(message) from error
    return digest.digest()


def _rows(job: Job, stack: ExitStack, *, quiet: bool) -> tuple[Iterator[tuple[int, Row] | None], int | None]:
    if job.stream:
        return chain.from_iterable(_numbered(number, name, job) for number, name in enumerate(job.files)), None
    spool = stack.enter_context(OrderedRows())
    for number, name in enumerate(job.files):
        if not quiet and sys.stderr.isatty():
            console.say(f"reading {name}")
        spool.add(number, open_source(name, job.options))
    return iter(spool), len(spool)


def _numbered(number: int, name: str, job: Job) -> Iterator[tuple[int, Row] | None]:
    if name == STDIN:
        yield from _live(number, open_source(name, job.options))
        return
    for row in open_source(name, job.options):
        yield number, row


def _live(number: int, rows: Iterator[Row]) -> Iterator[tuple[int, Row] | None]:
    """Rows as they arrive, and None whenever none has for a while, so that Ctrl-C and commits need not wait for one."""
    waiting: queue.Queue[Row | BaseException | None] = queue.Queue(LIVE_ROWS_MAX)

    def read() -> None:
        try:
            for row in rows:
                waiting.put(row)
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are taken
            waiting.put(error)
        else:
            waiting.put(None)

    threading.Thread(target=read, name="resetguard-stdin", daemon=True).start()
    while True:
        try:
            row = waiting.get(timeout=IDLE_S)
        except queue.Empty:
            yield None
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield number, row


class _Bar:
    """Progress on standard error, on a terminal only."""

    EVERY: Final = 500

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        shown = not quiet and console.ERR.is_terminal
        columns = (TextColumn("processing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console.ERR, transient=True) if shown else None
        self._task = self._progress.add_task("rows", total=total) if self._progress is not None else None
        self._count = 0

    def __enter__(self) -> None:
        if self._progress is not None:
            self._progress.start()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self) -> None:
        """One row more."""
        self._count += 1
        if self._progress is not None and self._task is not None and self._count % self.EVERY == 0:
            self._progress.update(self._task, completed=self._count)


def _report(job: Job, store: Store, intake: Intake, tally: Tally, first_seq: int) -> dict[str, Any]:
    measurements = {status: tally.measurements[status] for status in STATUSES}
    measurements["known"] += sum(intake.known)
    resets, held = _resets(store, first_seq)
    return {
        "measurements": {"read": sum(measurements.values()), **measurements},
        "source_totals": _source_totals(intake),
        "resets": {**resets, "interrupted": store.interrupted},
        "held_resets": held,
        "users": len(tally.users),
        "nis": {name: _consistency(*entry) for name, entry in tally.nis.items()},
        "quarantine_reasons": dict(tally.reasons.most_common()),
        "unknown_sources": dict(tally.unknown_sources.most_common(SOURCES_SHOWN_MAX)),
        "durability": job.durability,
    }


def _source_totals(intake: Intake) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for stream in intake.streams:
        totals.update(stream.cursor.totals)
    return {name: totals[name] for name in ("read", *STATUSES)}


def _resets(store: Store, first_seq: int) -> tuple[dict[str, Any], int]:
    """The outcomes of this run's attempts, read back from the audit log, and how many resets plausibility held back."""
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for row in store.audit(since_seq=first_seq):
        if row.public.owner == store.committer.owner:
            outcomes[row.public.outcome] += 1
            if row.public.outcome == "committed":
                kinds[row.public.kind] += 1
    counted = {name: outcomes[name] for name in ("committed", *UNDONE)}
    return {**counted, "by_kind": dict(sorted(kinds.items()))}, outcomes["held"]


def _consistency(count: int, total: float, below: int) -> dict[str, Any]:
    if not count:
        return {"count": 0, "mean": None, "share_under_3_84": None}
    return {"count": count, "mean": round(total / count, 4), "share_under_3_84": round(below / count, 4)}
