"""Mutation testing of the modules on which a reset rests: change one thing at a time, and see whether a test notices.

    python tests/mutation/run.py [--work DIR] [--again] [--children N] [--write] [MODULE ...]

Each module is mutated by mutmut in a copy of the repository under `--work`, and tested by the tests that lie near it
(`JUDGES`).  What was found is kept there, so that a second run goes on; `--again` tests anew what survived.  `--write` writes
docs/mutation.md.  The exit code is 1 where fewer than 85 % of a module's mutants are killed, or where one survives for which
`survivors.toml` gives no reason; it is printed in the form which that file takes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import difflib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
SHARE_MIN: Final = 0.85
LIBRARY: Final = "statemachine"
COPIED: Final = (LIBRARY, "tests", "chaos", "specs", "examples", "resetguard.py", "pyproject.toml")
OPTIONS: Final = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-p", "no:resetguard-chaos", "-m", "not slow")
JUDGES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "machine": (("tests/unit/test_machine.py",),),
    "recovery": (("tests/unit/test_recovery.py",),),
    "policy": (("tests/unit/test_policy.py",),),
    "validation": (("tests/unit/test_validation.py",),),
    "breaker": (("tests/unit/test_breaker.py", "tests/property/test_breaker_property.py"),),
    "transaction": (("tests/unit/test_transaction_ends.py",), ("tests/unit/test_transaction.py",)),
}
"""The tests that judge each module's mutants: tests near it, which give the same answer each time.

The first are asked about all, and each further group, which is slower, about those that survive the ones before.
"""

KILLED: Final = (1, 2, 3)
"""A test failed; an interrupt came through that should have been made an error of ours; pytest itself broke."""

TIMED_OUT: Final = (24, 36, 152, 255, -24, -9)
SURVIVED: Final = 0
UNTESTED: Final = (5, 33)


class Mutant(NamedTuple):
    """One change: the function it is in, the lines before and after, and what the tests said of it."""

    name: str
    function: str
    change: str
    exit_code: int | None

    @property
    def verdict(self) -> str:
        """One of "killed", "timed out", "survived", "untested" and "unknown"; the first two count as killed."""
        known = {**dict.fromkeys(KILLED, "killed"), **dict.fromkeys(TIMED_OUT, "timed out"), SURVIVED: "survived",
                 **dict.fromkeys(UNTESTED, "untested")}
        return "unknown" if self.exit_code is None else known.get(self.exit_code, "unknown")

    @property
    def alive(self) -> bool:
        """Whether no test has noticed it."""
        return self.verdict not in ("killed", "timed out")


class Group(NamedTuple):
    """Survivors of one module that survive for one reason."""

    module: str
    reason: str
    mutants: frozenset[str]


def prepare(work: Path, module: str, judges: tuple[str, ...]) -> None:
    """Copy the repository to `work`, with mutmut's settings for one module and the tests that judge it."""
    work.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            shutil.copytree(ROOT / name, work / name, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, work / name)
    (work / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test reaches what is found out anew each time
    settings = {
        "source_paths": [LIBRARY], "only_mutate": [f"{LIBRARY}/{module}.py"],
        "also_copy": [name for name in COPIED if name != LIBRARY], "pytest_add_cli_args": list(OPTIONS),
        "pytest_add_cli_args_test_selection": list(judges), "timeout_multiplier": 4.0, "timeout_constant": 4.0,
        "track_dependencies": False, "use_git_change_detection": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (work / "pyproject.toml").open("a") as file:
        file.write("\n".join(["", "", "[tool.mutmut]", *lines, ""]))


def mutate(work: Path, children: int, mutants: list[str]) -> None:
    """Let mutmut test the named mutants, or all it has no answer for yet."""
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "mutation", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children), *mutants]
    # In a session of its own: Ctrl-C would end the tests of a mutant as a change does that lets an interrupt through.
    with subprocess.Popen(command, cwd=work, env=environment, start_new_session=True) as running:
        try:
            code = running.wait()
        except BaseException:
            os.killpg(running.pid, signal.SIGTERM)
            raise
    if code:
        sys.exit(f"mutmut ended with {code} in {work}")


def results(work: Path, module: str) -> list[Mutant]:
    """What is known of a module's mutants."""
    mutated = work / "mutants" / LIBRARY / f"{module}.py"
    meta = json.loads(mutated.with_name(f"{module}.py.meta").read_text())
    spans = json.loads(mutated.with_name(f"{module}.py.spans").read_text())["spans"]
    lines = mutated.read_text().splitlines()
    found = []
    for name, exit_code in meta["exit_code_by_key"].items():
        short = name.rpartition(".")[2]
        mangled = short.partition("__mutmut_")[0]
        before, after = (_body(lines, spans[each]) for each in (f"{mangled}__mutmut_orig", short))
        function = mangled.removeprefix("x").strip("ǁ").replace("ǁ", ".").removeprefix("_" if mangled[1] == "_" else "")
        found.append(Mutant(name, function, _change(before, after), exit_code))
    return found


def _body(lines: list[str], span: list[int]) -> list[str]:
    """The lines of a function without its name, which differs from mutant to mutant."""
    text = [line.strip() for line in lines[span[0] - 1:span[1]]]
    first = next(index for index, line in enumerate(text) if line.startswith(("def ", "async def ")))
    return [text[first].partition("(")[2], *text[first + 1:]]


def _change(before: list[str], after: list[str]) -> str:
    removed = [line for line in difflib.ndiff(before, after) if line.startswith("- ")]
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    return f"{' '.join(line[2:] for line in removed)} => {' '.join(line[2:] for line in added)}"


def judged(work: Path, module: str, options: argparse.Namespace) -> list[Mutant]:
    """A module's mutants, judged by one group of tests after the other."""
    found: list[Mutant] = []
    for number, judges in enumerate(JUDGES[module][:options.groups]):
        here = work / f"{module}-{number}"
        if not options.only_report:
            prepare(here, module, judges)
            if number == 0:
                mutate(here, options.children, [])
                found = results(here, module)
                asked = [mutant.name for mutant in found if mutant.alive and options.again]
            else:
                known = {} if options.again else answers(here, module)
                asked = [mutant.name for mutant in found if mutant.alive and (mutant.name, mutant.change) not in known]
            if asked:
                mutate(here, options.children, asked)
        known = answers(here, module)
        found = results(here, module) if number == 0 else [
            known.get((mutant.name, mutant.change), mutant) if mutant.alive else mutant for mutant in found]
    return found


def answers(work: Path, module: str) -> dict[tuple[str, str], Mutant]:
    """What one group of tests has said so far; nothing of mutants that it has not judged."""
    found = results(work, module) if (work / "mutants" / LIBRARY / f"{module}.py.meta").exists() else []
    return {(mutant.name, mutant.change): mutant for mutant in found if mutant.exit_code is not None}


def reasons() -> list[Group]:
    """The reasons given in survivors.toml."""
    file = HERE / "survivors.toml"
    groups = tomllib.loads(file.read_text()).get("group", []) if file.exists() else []
    return [Group(group["module"], group["reason"], frozenset(group["mutants"])) for group in groups]


def label(mutant: Mutant) -> str:
    """How survivors.toml names a mutant: numbers would change with every edit of the function."""
    return f"{mutant.function}: {mutant.change}"


def unexplained(module: str, survivors: list[Mutant]) -> Iterator[str]:
    """The survivors without a reason, each once, as survivors.toml would name them."""
    known = {name for group in reasons() if group.module == module for name in group.mutants}
    yield from dict.fromkeys(label(mutant) for mutant in survivors if label(mutant) not in known)


def shorter(change: str) -> str:
    """The part of a change that differs, with what stands around it."""
    before, _, after = change.partition(" => ")
    start = alike(before, after)
    end = alike(before[start:][::-1], after[start:][::-1])
    begin = max(start - 24, 0)
    texts = []
    for text in (before, after):
        last = len(text) - end + 16
        texts.append(("…" if begin else "") + text[begin:last].strip() + ("…" if last < len(text) else ""))
    return " → ".join(f"`{text}`".replace("|", "\\|") for text in texts)


def alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def report(found: dict[str, list[Mutant]]) -> str:
    """docs/mutation.md."""
    today = dt.datetime.now(dt.UTC).date()
    text = (HERE / "preface.md").read_text()
    for name, value in (("@date@", today.isoformat()), ("@mutmut@", importlib.metadata.version("mutmut")),
                        ("@python@", ".".join(map(str, sys.version_info[:3])))):
        text = text.replace(name, value)
    lines = [text.rstrip(), "", "| module | mutants | killed | by a timeout | survived | share killed | judged by |",
             "|---|---|---|---|---|---|---|"]
    total = killed_in_all = 0
    for module, mutants in found.items():
        killed = sum(not mutant.alive for mutant in mutants)
        late = sum(mutant.verdict == "timed out" for mutant in mutants)
        near = ", then ".join(", ".join(f"`{Path(path).relative_to('tests')}`" for path in group) for group in JUDGES[module])
        lines.append(f"| `{module}.py` | {len(mutants)} | {killed} | {late} | {len(mutants) - killed} |"
                     f" {killed / len(mutants):.1%} | {near} |")
        total, killed_in_all = total + len(mutants), killed_in_all + killed
    lines += [f"| all | {total} | {killed_in_all} | | {total - killed_in_all} | {killed_in_all / total:.1%} | |", "",
              "## Survivors"]
    for module, mutants in found.items():
        left = [mutant for mutant in mutants if mutant.alive]
        lines += ["", f"### {module}.py", "" if left else "\nNone."]
        for group in (group for group in reasons() if group.module == module):
            named = [mutant for mutant in left if label(mutant) in group.mutants]
            if named:
                lines += [f"**{len(named)}**: {group.reason}", ""]
                lines += [f"- `{mutant.function}`: {shorter(mutant.change)}" for mutant in named] + [""]
        if without := list(unexplained(module, left)):
            lines += ["**Without a reason yet:**", "", *(f"- {name}" for name in without), ""]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> int:
    """Mutate, test and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"some of {', '.join(JUDGES)}; all, where none is named")
    parser.add_argument("--work", type=Path, default=ROOT / ".mutation", help="where the copies and results are kept")
    parser.add_argument("--again", action="store_true", help="test anew the mutants that were not killed")
    parser.add_argument("--only-report", action="store_true", help="run nothing; tell what is known")
    parser.add_argument("--groups", type=int, help="ask only so many groups of tests")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="mutants tested at a time")
    parser.add_argument("--write", action="store_true", help="write docs/mutation.md")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(JUDGES):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    bad = 0
    found = {}
    for module in options.modules or JUDGES:
        found[module] = mutants = judged(options.work.resolve(), module, options)
        left_over = [mutant for mutant in mutants if mutant.alive]
        share = 1 - len(left_over) / len(mutants)
        print(f"{module}: {len(mutants)} mutants, {share:.1%} killed, {len(left_over)} not", flush=True)
        for name in unexplained(module, left_over):
            bad += 1
            print(f"  {json.dumps(name, ensure_ascii=False)},")
        bad += share < SHARE_MIN
    if options.write:
        (ROOT / "docs" / "mutation.md").write_text(report(found))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
