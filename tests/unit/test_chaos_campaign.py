"""Campaigns over suites made for the purpose: counting, floors, witnesses, budgets, deaths, reports and replays."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console
from typer.testing import CliRunner

from chaos import campaign, running, showing
from chaos.__main__ import app
from chaos.campaign import Asked, Ran
from chaos.planted import PLANTED, Planted
from chaos.suite import Point, Verdict
from chaos.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.suite import Session


class Sure:
    """A thousand points, of which every tenth does not fire and the rest survive."""

    name = "sure"
    summary = "what always survives"
    floor = 900
    grows = True
    weight = 1.0
    witnesses = frozenset({"rolled back", "went on"})
    broken: tuple[str, ...] = ()

    def unavailable(self) -> str:
        return ""

    def run(self, session: Session) -> Iterator[Verdict]:
        for number in session.mine(range(1_000 * session.times)):
            yield self.replay(session, Point(self.name, "EIO" if number % 2 else "ENOSPC", [session.seed, number]))

    def replay(self, session: Session, point: Point) -> Verdict:
        number = point.where[1] + {"EIO": 0, "ENOSPC": 0}[point.fault]
        return Verdict(point, "rolled back" if number % 3 else "went on", self.broken if number == 77 else (), number % 10 != 0)


class Broken(Sure):
    name = "broken"
    broken = ("durable: version 3 of <ann> is gone",)

    def shrink(self, _: Session, verdict: Verdict) -> Verdict:
        return Verdict(Point("broken", verdict.point.fault, [0, 77]), verdict.outcome, verdict.violations)


class Dying(Sure):
    name = "dying"

    def run(self, session: Session) -> Iterator[Verdict]:
        yield from super().run(session)
        if session.share == 0:
            os.kill(os.getpid(), signal.SIGSEGV)


class Raising(Sure):
    name = "raising"

    def run(self, session: Session) -> Iterator[Verdict]:
        yield from super().run(session)
        message = "a bug"
        raise KeyError(message)


class Hanging(Sure):
    name = "hanging"

    def run(self, session: Session) -> Iterator[Verdict]:
        yield from super().run(session)
        if session.share == 0:
            time.sleep(60)


class Partly(Sure):
    name = "partly"

    def replay(self, session: Session, point: Point) -> Verdict:
        found = super().replay(session, point)
        if point.fault == "ENOSPC" and found.fired:
            return Verdict(point, "cannot fill a disk here", (), fired=False)
        return found


class Slow(Sure):
    name = "slow"

    def replay(self, session: Session, point: Point) -> Verdict:
        time.sleep(0.005)
        return super().replay(session, point)


class Narrow(Sure):
    name = "narrow"
    witnesses = frozenset({"rolled back", "never"})
    floor = 901


class Nowhere(Sure):
    name = "nowhere"

    def unavailable(self) -> str:
        return "it needs a moon"


MADE: dict[str, Any] = {one.name: one for one in (Sure, Broken, Dying, Raising, Hanging, Partly, Slow, Narrow, Nowhere)}


def ran(*names: str, **asked: Any) -> list[Ran]:
    return campaign.run(Asked(names, **asked), Target(), {name: MADE[name]() for name in names})


def test_every_point_is_tried_once_whatever_the_number_of_workers() -> None:
    one, many = ran("sure")[0], ran("sure", workers=3)[0]
    assert (one.fired, one.unfired, one.failures) == (900, 100, [])
    assert one.outcomes == {"EIO": {"rolled back": 333, "went on": 167}, "ENOSPC": {"rolled back": 267, "went on": 133}}
    assert (many.fired, many.unfired, many.outcomes, many.digest) == (one.fired, one.unfired, one.outcomes, one.digest)


def test_the_digest_tells_seeds_and_verdicts_apart() -> None:
    assert len({ran("sure")[0].digest, ran("sure", seed=2)[0].digest, ran("broken")[0].digest}) == 3


def test_the_full_plan_has_ten_times_the_points() -> None:
    found = ran("sure", plan="full", workers=2)[0]
    assert (found.fired, found.floor, found.failures) == (9_000, 9_000, [])


def test_a_broken_promise_fails_the_suite_and_is_kept_shrunk() -> None:
    found = ran("sure", "broken", workers=2)
    assert [one.failures for one in found] == [[], ["1 of 1000 points broke a promise"]]
    finding, = found[1].findings
    assert finding.verdict.point == Point("broken", "EIO", [0, 77])
    assert campaign.replay(finding, Target(), {"broken": Broken()}) == finding.verdict


def test_what_was_never_seen_and_too_few_points_fail_a_suite() -> None:
    assert ran("narrow")[0].failures == ["900 faults fired, of at least 901", "never seen: never"]


def test_a_worker_that_dies_fails_its_suite() -> None:
    died, raised = ran("dying", workers=2)[0], ran("raising", workers=2)[0]
    assert "a worker was killed by SIGSEGV" in died.failures
    assert "the suite raising failed: KeyError: 'a bug'" in raised.failures


def test_a_worker_that_hangs_is_ended_and_fails_its_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "SILENT_S_MAX", 0.5)
    began = time.monotonic()
    found = ran("hanging", workers=2)[0]
    assert time.monotonic() - began < 10.0
    assert found.failures[0] == "a worker had no verdict for 0.5 s, and was ended"


def test_a_budget_stops_at_a_prefix_and_fails_below_the_floor() -> None:
    began = time.monotonic()
    found = ran("slow", budget_s=0.5)[0]
    assert time.monotonic() - began < 3.0
    assert 0 < found.fired < 900
    assert found.failures[0] == f"{found.fired} faults fired, of at least 900"


def test_what_cannot_run_is_no_failure_and_is_told() -> None:
    found = ran("nowhere", "sure")
    assert [(one.unavailable, one.failures, one.fired) for one in found] == [("it needs a moon", [], 0), ("", [], 900)]


def test_a_fault_that_the_machine_does_not_allow_is_no_failure_and_is_said_loudly(suites: Path) -> None:
    found = ran("partly", workers=2)[0]
    assert (found.fired, found.unfired, found.failures) == (500, 100, [])
    assert found.untried == {"ENOSPC": {"cannot fill a disk here": 400}}
    code, out, err = told("run", "--suite", "partly", "--junit", "r.xml", "--html", "r.html")
    assert (code, "NOT TRIED: ENOSPC: 400 cannot fill a disk here" in out) == (0, True)
    assert "the fault ENOSPC of partly was NOT TRIED: cannot fill a disk here" in " ".join(err.split())
    suite, = ET.parse(suites / "r.xml").getroot()  # noqa: S314 - our own file
    assert (suite.get("skipped"), suite.get("failures")) == ("1", "0")
    assert "not tried: ENOSPC" in (suites / "r.html").read_text(encoding="utf-8")


def test_nothing_is_left_when_the_watching_stops_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(_ran: list[Ran], _trying: str) -> None:
        raise KeyboardInterrupt

    workers: list[int] = []

    def noted() -> int:
        child = fork()
        workers.append(child)
        return child

    fork = os.fork
    monkeypatch.setattr(os, "fork", noted)
    monkeypatch.setattr(campaign, "_tmpfs", lambda: str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        campaign.run(Asked(("slow",), workers=2), Target(), {"slow": Slow()}, stop)
    assert list(tmp_path.iterdir()) == []
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


# The commands.


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(running, "SUITES", MADE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, args)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_run_shows_the_matrix_and_replays_what_it_found(suites: Path) -> None:
    code, out, _ = told("run", "--suite", "sure", "--suite", "broken", "--json", "r.json", "--junit", "r.xml", "--html", "r.html")
    assert code == 1
    assert "FAILED: 1 of 1000 points broke a promise" in out
    assert "durable: version 3 of <ann> is gone" in out
    command = next(line.strip() for line in out.splitlines() if "chaos replay" in line)
    code, out, _ = told(*command.split()[3:])
    assert (code, "durable: version 3" in out) == (1, True)

    document = json.loads((suites / "r.json").read_bytes())
    assert (document["passed"], [s["passed"] for s in document["suites"]]) == (False, [True, False])
    assert sum(sum(o.values()) for o in document["suites"][0]["outcomes"].values()) == 900
    junit = ET.parse(suites / "r.xml").getroot()  # noqa: S314 - our own file
    assert [(s.get("name"), s.get("failures")) for s in junit] == [("sure", "0"), ("broken", "2")]
    page = (suites / "r.html").read_text(encoding="utf-8")
    assert "&lt;ann&gt;" in page
    assert "<ann>" not in page
    assert command in page
    assert command in (junit[1].findtext("testcase[@name='EIO']/failure") or "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_shows_its_part_and_leaves_nothing(suites: Path, monkeypatch: pytest.MonkeyPatch, how: int) -> None:
    (suites / "scratch").mkdir()
    monkeypatch.setattr(campaign, "_tmpfs", lambda: str(suites / "scratch"))
    before = signal.getsignal(signal.SIGTERM)
    watch = showing.Bar.watch

    def stopped(*told: Any) -> None:
        watch(*told)
        os.kill(os.getpid(), how)

    monkeypatch.setattr(showing.Bar, "watch", stopped)
    code, out, err = told("run", "--suite", "slow")
    assert (code, "slow: " in out, "interrupted" in err) == (130, True, True)
    assert list((suites / "scratch").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finding_that_holds_now_says_so(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told("run", "--suite", "broken")
    finding, = suites.glob("chaos-findings/*.json")
    monkeypatch.setattr(Broken, "broken", ())
    code, out, _ = told("replay", str(finding))
    assert (code, "every promise holds" in out) == (0, True)


@pytest.mark.parametrize(("key", "value", "why"), [
    ("fault", "nope", "KeyError"), ("where", [], "IndexError"), ("where", [1, "x"], "TypeError")])
def test_a_finding_that_is_no_point_any_more_is_wrong_use(suites: Path, key: str, value: object, why: str) -> None:
    told("run", "--suite", "broken")
    finding, = suites.glob("chaos-findings/*.json")
    document = json.loads(finding.read_bytes())
    document["verdict"]["point"][key] = value
    finding.write_text(json.dumps(document), encoding="utf-8")
    code, _, err = told("replay", str(finding))
    assert code == 2
    assert "there is no point broken: " in " ".join(err.split())
    assert why in err


def test_a_replay_whose_fault_does_not_fire_proves_nothing(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told("run", "--suite", "broken")
    finding, = suites.glob("chaos-findings/*.json")
    monkeypatch.setattr(Broken, "replay", lambda _self, _session, point: Verdict(point, "not met", (), fired=False))
    code, out, _ = told("replay", str(finding))
    assert (code, "the fault did not fire" in out, "holds" in out) == (1, True, False)


@pytest.mark.parametrize("place", [("--json", "no/such/place.json"), ("--html", "."), ("--findings", "taken")])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_tried(suites: Path, place: tuple[str, str]) -> None:
    (suites / "taken").touch()
    code, out, err = told("run", "--suite", "sure", *place)
    assert (code, out, place[1] in err) == (2, "", True)


WORDY = Ran("wordy", 0, outcomes={
    "KeyboardInterrupt at an opcode": {"in doubt, had not landed": 5, "raised, nothing written": 1_234_567, "told the truth": 1},
    "GeneratorExit at a line": {"an error of the library": 549, "went on all the same": 255, "in doubt, had landed": 3}})


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_no_word_of_the_matrix_is_broken(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for part in showing.matrix([WORDY], width):
        console.print(part)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    words = {word for fault, outcomes in WORDY.outcomes.items() for words in (fault, *outcomes) for word in words.split()}
    assert words <= set(shown.split())
    assert {"1,234,567", "549"} <= set(shown.split())


def test_the_example_of_canaries_names_a_bug_that_can_be_planted() -> None:
    assert (running.canaries.__doc__ or "").rpartition('canaries "')[2].partition('"')[0] in PLANTED


@pytest.mark.parametrize(("args", "why"), [
    (("run", "--suite", "nope"), "no suite is called 'nope'; known: sure, broken"),
    (("run", "--plan", "long"), "no plan is called 'long'; known: short, full"),
    (("run", "--budget", "soon"), "budget 'soon' is no duration; write 60s, 5m or 1h"),
    (("run", "--target", "nowhere"), "target 'nowhere' is not module:factory"),
    (("run", "--target", "no_such_module:target"), "is its module on the path"),
    (("run", "--target", "json:loads"), "it must be a function without arguments"),
    (("run", "--target", "json:nope"), "cannot be loaded"),
    (("run", "--target", "os:getcwd"), "returned a str, not a chaos.Target"),
    (("run", "--plant", "nope", "--suite", "sure"), "no bug is called 'nope'"),
    (("run", "--suite", "sure", "--json", "no/such/place.json"), "no/such/place.json: No such file or directory"),
    (("replay", "missing.json"), "give a file that `python -m chaos run` wrote"),
    (("canaries", "nope"), "no bug is called 'nope'"),
])
def test_wrong_use_is_one_line_and_two(suites: Path, args: tuple[str, ...], why: str) -> None:
    code, _, err = told(*args)
    assert code == 2
    assert why in " ".join(err.split())
    assert "Traceback" not in err


def test_list_names_the_suites_and_what_cannot_run(suites: Path) -> None:
    code, out, _ = told("list")
    assert code == 0
    assert "sure" in out
    assert "cannot run here: it needs a moon" in out


def test_canaries_tell_the_found_from_the_missed(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plant:
        def __enter__(self) -> None:
            Sure.broken = ("durable: planted",)

        def __exit__(self, *_: object) -> None:
            Sure.broken = ()

    bugs = {"seen": Planted("a bug", "durable", "sure", Plant), "unseen": Planted("another", "chained", "sure", Plant)}
    monkeypatch.setattr(running, "PLANTED", bugs)
    code, out, _ = told("canaries")
    assert code == 1
    assert "found  seen" in out
    assert "MISSED unseen" in out
    replayed = next(line.split() for line in out.splitlines() if "chaos replay" in line)
    assert told(*replayed[3:])[0] == 1, "the bug is planted again"
    assert told("canaries", "seen")[0] == 0


# Experiments.


def test_an_experiment_checks_the_steady_state_before_and_after(suites: Path) -> None:
    with Target().open(suites / "state", durability="process"):
        pass
    file = suites / "e.toml"
    file.write_text('title = "t"\nsuites = ["sure"]\nseed = 4\n[steady-state]\nstore = "state"\ncommand = ["true"]\n', "utf-8")
    assert told("run", "--experiment", str(file))[0] == 0
    file.write_text('suites = ["sure"]\n[steady-state]\ncommand = ["sh", "-c", "echo not well; exit 3"]\n', "utf-8")
    code, out, err = told("run", "--experiment", str(file))
    assert (code, "faults" in out) == (1, False)
    assert "before the faults the steady state does not hold: 'sh -c echo not well; exit 3' exited with 3: not well" in " ".join(
        err.split())


@pytest.mark.parametrize(("text", "why"), [
    ("suite = ['sure']", "did you mean suites?"),
    ("plan = 'long'", "Invalid enum value 'long'"),
    ("seed = 'x'", "Expected `int`, got `str` - at `$.seed`"),
    ("seed = 1\nplan = nope", "line 2"),
    ("suites = ['nope']", "no suite is called 'nope'"),
])
def test_a_bad_experiment_names_file_value_and_remedy(suites: Path, text: str, why: str) -> None:
    (suites / "e.toml").write_text(text, "utf-8")
    code, _, err = told("run", "--experiment", "e.toml")
    assert code == 2
    assert why in " ".join(err.split())
