"""What the documents say is there: links, paths, examples; and nothing tells on whose machine it was written."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
GENERATED = {"build", "dist", "htmlcov", "node_modules", "venv", "__pycache__"}
SOURCE = {"", ".cfg", ".css", ".csv", ".html", ".ini", ".json", ".jsonl", ".md", ".py", ".pyi", ".rst", ".sh", ".svg",
          ".tla", ".toml", ".txt", ".xml", ".yaml", ".yml"}
FENCED = re.compile(r"^( *)(```+|~~~+)(.*?)\n(.*?)^\1\2`*$", re.MULTILINE | re.DOTALL)
# The folders in which people and build machines keep a checkout; what precedes may not make it part of a longer path.
MACHINE_PATH = re.compile(r"(?<![\w.~>})-])/(?:work|root|home|Users)/")
EXAMPLE_SECONDS_MAX = 60


def project_files() -> Iterator[Path]:
    """Every file that is ours: what tools generate and keep in hidden folders is left out, .ci is not."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f == ".ci" or not (f.startswith(".") or f in GENERATED))
        ours = (name for name in sorted(names) if name != ".git" and not name.startswith(".coverage"))
        yield from (Path(folder, name) for name in ours)


def prose(markdown: str) -> str:
    """The text without code, where brackets and slashes mean something else."""
    return re.sub(r"`[^`\n]+`", "", FENCED.sub("", markdown))


def anchors(markdown: str) -> set[str]:
    """The fragments under which the headings can be linked to, made as GitHub makes them."""
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', markdown))
    for heading in re.findall(r"^#{1,6} +(.*?)#* *$", FENCED.sub("", markdown), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        repeats = sum(1 for a in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", a))
        found.add(f"{slug}-{repeats}" if slug in found else slug)
    return found


def broken_links(markdown: str, path: Path) -> Iterator[str]:
    """Relative links of a document at `path` to files or headings that do not exist."""
    text = prose(markdown)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"^ *\[[^\]]+\]: *<?(\S+?)>?$", text, re.MULTILINE)
    for target in targets:
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", target):
            continue
        name, _, fragment = target.partition("#")
        file = path.parent / name if name else path
        if name and not file.exists():
            yield f"{path.name}: {target} leads nowhere"
        elif fragment and file.suffix == ".md":
            there = markdown if file == path else file.read_text(encoding="utf-8")
            if fragment not in anchors(there):
                yield f"{path.name}: {target} names no heading"


def missing_paths(markdown: str) -> Iterator[str]:
    """Code words that look like files, folders or dotted names of this project, and are none."""
    top = {p.name for p in ROOT.iterdir() if p.is_dir()}
    for word in sorted(set(re.findall(r"`([^`\n]+)`", FENCED.sub("", markdown)))):
        if re.fullmatch(r"(statemachine|chaos)(\.\w+)+", word):
            try:
                pkgutil.resolve_name(word)
            except (ImportError, AttributeError):
                if not (ROOT / word).exists():
                    yield word
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?(::[\w:\[\]-]+)?", word):
            name = word.partition("::")[0]
            ours = name.partition("/")[0] in top and "/" in name
            named = re.fullmatch(r".+\.(py|md|toml|json|tla)", name) is not None
            if (ours or named) and not any((base / name).exists() for base in (ROOT, ROOT / "statemachine")):
                yield word


def machine_paths(text: str) -> list[str]:
    """Absolute paths that hold on one machine only."""
    return MACHINE_PATH.findall(text)


def python_blocks(markdown: str) -> list[tuple[int, str]]:
    """The line on which each block fenced as python begins, and its code."""
    return [(markdown.count("\n", 0, block.start()) + 1, re.sub(rf"^{block[1]}", "", block[4], flags=re.MULTILINE))
            for block in FENCED.finditer(markdown) if block[3].strip() == "python"]


EXAMPLES = python_blocks(README.read_text(encoding="utf-8")) if README.exists() else []


@pytest.mark.parametrize("path", [README, ARCHITECTURE], ids=lambda path: path.name)
def test_document_exists(path: Path) -> None:
    assert path.is_file()


def test_links_resolve() -> None:
    documents = [path for path in project_files() if path.suffix == ".md"]
    assert documents != []
    assert [link for path in documents for link in broken_links(path.read_text(encoding="utf-8"), path)] == []


def test_paths_in_the_architecture_exist() -> None:
    assert list(missing_paths(ARCHITECTURE.read_text(encoding="utf-8"))) == []


def test_readme_has_a_python_example() -> None:
    assert EXAMPLES != []


@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[f"line-{line}" for line, _ in EXAMPLES])
def test_readme_example_runs(code: str, tmp_path: Path) -> None:
    """Each block stands alone: a reader copies one."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=EXAMPLE_SECONDS_MAX, check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {}
    for path in project_files():
        if path.suffix in SOURCE:
            text = path.read_bytes().decode("utf-8", errors="replace")
            if hits := machine_paths(text):
                found[str(path.relative_to(ROOT))] = hits
    assert found == {}


def test_broken_link_is_found() -> None:
    text = ("# A heading: `x`, twice\n[a](LICENSE) [b](https://example.org/x) [c](#a-heading-x-twice) `[d](no.md)`\n\n"
            "```md\n[e](no.md)\n```\n[f](gone.md) ![g](no.png)\n"
            "[h]: absent/x.md\n[i](#nowhere) [j](CHANGELOG.md#gone)\n")
    assert list(broken_links(text, ROOT / "X.md")) == [
        "X.md: gone.md leads nowhere", "X.md: no.png leads nowhere", "X.md: #nowhere names no heading",
        "X.md: CHANGELOG.md#gone names no heading", "X.md: absent/x.md leads nowhere",
    ]


def test_missing_path_is_found() -> None:
    text = ("`statemachine/errors.py` `errors.py` `statemachine.errors.ResetError.kind` `tests/conformance/` `P`/`Q`\n"
            "`tests/conformance/test_layers.py::test_x` `owners/<n>` `application/json` `statemachine.errors` `a/b`\n"
            "`statemachine/gone.py` `gone.py` `statemachine.gone` `statemachine.errors.Gone` `tests/gone/`\n")
    assert list(missing_paths(text)) == [
        "gone.py", "statemachine.errors.Gone", "statemachine.gone", "statemachine/gone.py", "tests/gone/",
    ]


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
def test_machine_path_is_found(folder: str) -> None:
    for before in ("see ", "`", '"', "file://", "(", "=", ""):
        assert machine_paths(f"{before}/{folder}/x") != [], before
    for before in ("https://example.org", "..", "docs", "{prefix}", "~"):
        assert machine_paths(f"{before}/{folder}/x") == [], before
    assert machine_paths(f"/{folder}book/x") == []


def test_python_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n1. b\n\n   ```python\n   if x:\n       y\n   ```\n"
    assert python_blocks(text) == [(2, "x = 1\n"), (10, "if x:\n    y\n")]
