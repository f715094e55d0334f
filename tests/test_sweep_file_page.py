"""docs/sweep-file.md says what the schema says, of every key."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from massive_sft.sweep.identity import HASHED, UNHASHED
from massive_sft.sweep.json_schema import json_schema

DOCS = Path(__file__).parent.parent / "docs"
MAKER = runpy.run_path(str(DOCS / "sweep_file.py"))


def classes(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """Return the classes of a sweep file's entries, from the one of the whole file."""
    below = {entry for field in kind.model_fields.values() for entry in MAKER["_entries_in"](field.annotation)}
    return {kind}.union(*map(classes, below))


def test_page_is_what_the_schema_makes() -> None:
    text = (DOCS / "sweep-file.md").read_text(encoding="utf-8")
    assert text == MAKER["page"](), "run: python docs/sweep_file.py"


def test_every_key_has_a_sentence_and_a_row() -> None:
    kinds = classes(MAKER["SweepFile"]) | classes(MAKER["Setting"]) | classes(MAKER["MixtureEntry"])
    assert {kind.__name__ for kind in kinds} == set(HASHED) | set(UNHASHED) | {"SweepFile"}
    rows = [line.split("|")[1].strip(" `") for line in MAKER["page"]().splitlines() if line.startswith("| `")]
    last = [row.rpartition(".")[2] for row in rows]
    sections = [line.removeprefix("## ") for line in MAKER["page"]().splitlines() if line.startswith("## ")]
    for kind in kinds:
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no sentence"
            assert (field.alias or name) in [*last, *sections]


def test_editors_show_the_sentences() -> None:
    whole: dict[str, Any] = json_schema()
    setting = whole["$defs"]["Setting"]["properties"]
    assert "Samples of one optimizer step" in setting["batch"]["description"]
    assert "pins it to a commit" in whole["$defs"]["Dataset"]["properties"]["revision"]["description"]
    assert "their union is the sweep" in whole["properties"]["blocks"]["description"]
