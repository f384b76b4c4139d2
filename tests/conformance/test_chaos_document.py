"""docs/chaos.md is true: its target works, its experiment is read, its promises are those of the checker."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from chaos import checker, experiment
from chaos.__main__ import app
from chaos.checker import judge
from chaos.history import Event
from chaos.target import Target
from chaos.workload import PRESENT_US, Client, generate
from statemachine.testing import CountingIds, ManualClock

TEXT = Path(__file__).parents[2].joinpath("docs", "chaos.md").read_text("utf-8")


def block(kind: str) -> str:
    found, = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def test_the_table_names_every_promise() -> None:
    told = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert told == ["readable", *(promise.__name__ for promise in checker.PROMISES), "audited"]


def test_its_target_is_ten_lines_and_runs(tmp_path: Path) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, object] = {}
    exec(compile(code, "docs/chaos.md", "exec"), names)  # noqa: S102 - the document's own
    target = names["target"]()  # type: ignore[operator]
    assert isinstance(target, Target)
    events: list[Event] = []
    with target.open(tmp_path / "s", clock=ManualClock(PRESENT_US), ids=CountingIds(), durability="process") as store:
        answers = [told.answer for told in Client(target, store, events.append).run(generate(1, 40))]
    assert answers.count("acknowledged") > 30
    with target.open(tmp_path / "s", clock=ManualClock(PRESENT_US), ids=CountingIds(), durability="process") as store:
        assert judge(target, events, store) == ()


def test_its_experiment_is_one(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(block("toml"), "utf-8")
    said = experiment.read(tmp_path / "e.toml")
    assert (said.target, said.suites, said.steady_state.store) == ("ours_chaos:target", ("power", "deaths"), "./state")


def test_its_options_are_those_of_the_command() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for option in set(re.findall(r"(?<!pytest )(--(?!chaos)[a-z]+)", TEXT)):
        assert option in shown, option
