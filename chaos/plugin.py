"""The pytest plugin: `pytest --chaos-target module:factory` runs the suites on a target of yours, one test a suite.

It is loaded by every pytest of an environment that has resetguard, so nothing heavy is imported before a target is given.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chaos.campaign import Finding


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("chaos", "fault injection of resetguard")
    group.addoption("--chaos-target", metavar="MODULE:FACTORY", help="run the chaos suites on the chaos.Target this returns")
    group.addoption("--chaos-suite", action="append", default=[], metavar="S", help="only this suite; may be repeated")
    group.addoption("--chaos-seed", type=int, default=1, metavar="N", help="the same seed tries the same points")
    group.addoption("--chaos-plan", choices=("short", "full"), default="short", help="full tries ten times as many points")
    group.addoption("--chaos-budget", metavar="60s", help="stop all suites after this time, each with a part of its plan")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means."""
    config.addinivalue_line("markers", "chaos: a suite of the chaos harness on the target of --chaos-target")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test a suite, after the others."""
    name = config.getoption("--chaos-target")
    if name is None:
        return
    sys.path.insert(0, str(config.invocation_params.dir))  # a target next to where pytest is called, as `python -m chaos` has it
    try:
        from chaos import campaign, experiment, target  # noqa: PLC0415 - only where a target is given
        from chaos.suites import SUITES  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "greenlet":
            raise
        message = f"--chaos-target needs {error.name}, which the extra brings: pip install 'resetguard[chaos]'"
        raise pytest.UsageError(message) from error
    try:
        chosen = campaign.select(config.getoption("--chaos-suite"), SUITES)
        experiment.seconds(config.getoption("--chaos-budget"))
        target.load(name)
    except KeyError as error:
        message = f"no chaos suite is called {error}; known: {', '.join(SUITES)}"
        raise pytest.UsageError(message) from error
    except (target.BadTarget, experiment.BadExperiment) as error:
        raise pytest.UsageError(str(error)) from error
    for suite in chosen:
        item = SuiteItem.from_parent(session, name=f"chaos[{suite}]", suite=suite, among=len(chosen))
        item.add_marker("chaos")
        items.append(item)


class SuiteBroke(Exception):
    """A suite failed; its text is what pytest shows."""


class SuiteItem(pytest.Item):
    """One suite as a test."""

    def __init__(self, *, suite: str, among: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.suite = suite
        self.among = among

    def runtest(self) -> None:
        """Run the suite; SuiteBroke where a promise broke or the floor was not reached."""
        from chaos.running import campaigned  # noqa: PLC0415 - only where a target is given

        option = self.config.getoption
        ran, saved = campaigned(self.suite, target=option("--chaos-target"), seed=option("--chaos-seed"),
                                plan=option("--chaos-plan"), budget=option("--chaos-budget"), among=self.among)
        if ran.unavailable:
            pytest.skip(ran.unavailable)
        if ran.failures:
            raise SuiteBroke("\n".join([*ran.failures, *(_told(finding, path) for finding, path in saved)]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: object) -> str:
        """The broken promises, without a traceback of the harness."""
        return str(excinfo.value) if excinfo.errisinstance(SuiteBroke) else str(excinfo.getrepr(style="short"))

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where it stands in a report."""
        return f"chaos/suites ({self.suite})", None, self.name


def _told(finding: Finding, path: str) -> str:
    broken = "\n".join(f"  {violation}" for violation in finding.verdict.violations[:3])
    return f"broken at {finding.verdict.point}\n{broken}\n  python -m chaos replay {path}"
