"""docs/architecture.md and docs/glossary.md say what is: the places that they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_layers_of_code import LAYERS, PACKAGE

ROOT = PACKAGE.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLACES = re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT)
MAX_STOPS = 8
MAX_WORDS = 25


def names_in(path: Path) -> set[str]:
    """Return the names of a module's functions, classes and their methods, these as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_named_place_exists(file: str, name: str) -> None:
    assert name in names_in(PACKAGE / file)


@pytest.mark.parametrize(
    "way", re.findall(r"^## The way of .+?(?=^## |\Z)", TEXT, re.M | re.S), ids=lambda way: way[:24]
)
def test_way_has_few_stops(way: str) -> None:
    stops = re.findall(r"^\d+\. `[\w/]+\.py:[\w.]+`", way, re.M)
    assert 1 < len(stops) == len(re.findall(r"^\d+\.", way, re.M)) <= MAX_STOPS


@pytest.mark.parametrize(
    "file", re.findall(r"^\| .+ \| `([\w/.]+)` \|$", TEXT.partition("## Where do I change")[2], re.M)
)
def test_place_of_a_change_exists(file: str) -> None:
    assert (PACKAGE / file).is_file()


def test_changes_have_places() -> None:
    rows = re.findall(r"^\| (?!what \||---).+", TEXT.partition("## Where do I change")[2], re.M)
    assert len([row for row in rows if re.fullmatch(r"\| .+ \| `[\w/]+\.[\w.]+` \|", row)]) == len(rows) >= 10


def test_table_of_packages_is_that_of_the_layers() -> None:
    table = re.findall(r"^\| `(\w+)` \|", TEXT, re.M)
    assert table == [unit for row in LAYERS for unit in row if not unit.startswith("__")]


@pytest.mark.parametrize("package", sorted(path.parent for path in PACKAGE.glob("*/__init__.py")), ids=lambda p: p.name)
def test_package_says_what_comes_in_what_goes_out_and_what_it_never_does(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert re.search(r"^In: .+ Out: .+^Never: ", text, re.M | re.S), text


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([\w/]+/\w+\.py)\b", page.read_text(encoding="utf-8")))
    assert [name for name in named if not ((PACKAGE / name).is_file() or (ROOT / name).is_file())] == []


def glossary() -> list[str]:
    return re.findall(r"^\| (.+?) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M)[1:]


def test_glossary_has_few_words() -> None:
    assert len(glossary()) == len(set(glossary())) <= MAX_WORDS


def test_glossary_s_words_are_those_of_the_code() -> None:
    """Each is part of the name of a module, class or function."""
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    parts = {part.lower() for name in names for part in re.findall(r"[A-Z]?[a-z]+", name)}
    assert set(glossary()) <= parts | {part.removesuffix("s") for part in parts}
