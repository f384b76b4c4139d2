"""Every check of this repository.  `nox` runs the default ones; `nox -l` lists all, `nox -s NAME -- ARGS` runs one."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.sessions = ["lint", "types", "spec", "chaos", "tests"]  # the tests come last, so that a log ends with their result
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # `tests_all` reports each one it had to skip

PROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = nox.project.python_versions(PROJECT)
QUICK = ("-m", "not slow")
HARNESS = sorted(str(path) for names in ("chaos/test_*.py", "unit/test_chaos_*.py", "regression/test_found_by_*.py")
                 for path in Path("tests").glob(names))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules; lines are wrapped by hand, so its formatter is not run."""
    session.install(*(r for r in PROJECT["project"]["optional-dependencies"]["lint"] if r.startswith("ruff")))
    session.run("ruff", "check", *(session.posargs or ["."]))


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over the library and its tests."""
    session.install("-e", ".[test,lint]")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that is not slow, with branch coverage; with arguments, those tests alone and no coverage.

    Those of the harness come by themselves, without: they fork and trace by the thousand, and each fork would keep its figures.
    """
    session.install("-e", ".[test]")
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        session.run("pytest", "-n", "auto", *QUICK, *HARNESS)
        session.run("pytest", "-n", "auto", *QUICK, "--cov", *(f"--ignore={path}" for path in HARNESS))


@nox.session
def spec(session: nox.Session) -> None:
    """The models of `specs/` searched by SPIN, refuted without each safeguard, and driven on the library, edge by edge."""
    session.install("-e", ".[chaos]")
    session.run("python", "-m", "chaos", "spec", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """The harness's short plan: every suite of faults, each to its floor.  Arguments are those of `python -m chaos run`."""
    session.install("-e", ".[chaos]")
    session.run("python", "-m", "chaos", "run", *(session.posargs or ["--plan", "short"]))


@nox.session
def chaos_full(session: nox.Session) -> None:
    """Ten times as many points, then the bugs that are planted to see them found."""
    session.install("-e", ".[chaos]")
    session.run("python", "-m", "chaos", "run", "--plan", "full", *session.posargs)
    session.run("python", "-m", "chaos", "canaries")


@nox.session(python=SUPPORTED)
def tests_all(session: nox.Session) -> None:
    """The same tests under each supported Python that this machine has."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", *(session.posargs or QUICK))


@nox.session
def long(session: nox.Session) -> None:
    """The slow tests, with more of Hypothesis's examples."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", "-m", "slow", *session.posargs, env={"HYPOTHESIS_PROFILE": "long"})


@nox.session
def mutation(session: nox.Session) -> None:
    """Mutate the modules on which a reset rests, and see which tests notice; arguments are those of tests/mutation/run.py."""
    session.install("-e", ".[mutation]")
    session.run("python", "tests/mutation/run.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure; arguments are those of `python -m benchmarks`."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
