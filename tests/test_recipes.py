"""The ten datasets of the paper's sweep file, each against a tiny file of its published columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from massive_sft.data.file_readers import load_rows
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Dataset, SweepFile

PAPER = Path(__file__).parent.parent / "sweeps" / "massive_sft.yaml"


def flan(task: str, prompt: str, answer: str) -> dict[str, Any]:
    return {"inputs": prompt, "targets": answer, "task": task}


FLAN = [
    flan("bool_q", "Is it?", "yes"),
    flan("natural_questions_open", "Who?", "none"),  # as the paper: dropped
    flan("trivia_qa", "What?", "a thing"),
    flan("arc_easy", "Pick.", "(A)"),
    flan("piqa", "How?", "so"),
    flan("quac", "And then?", "none"),
    flan("squad_v2", "Where?", "here"),
    flan("wmt16_translate", "Translate.", "fertig"),
]
LIMA = [["One", "two", "three", "four"]] + [["Hello?", "Hi."]] * 1002
# The rows of a file of each dataset's published columns, and the turns that the recipe makes of them.
FILES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "alpaca_cleaned": (
        [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Greet.", "input": "", "output": "Hi."}],
        [("Add.\n1 2", "3"), ("Greet.", "Hi.")],
    ),
    "lima": ([{"conversations": turns, "source": "x"} for turns in LIMA], [("One", "two")] + [("Hello?", "Hi.")] * 999),
    "ultrachat": (
        [{"id": "0", "data": ["First", "reply", "second", "reply"]}, {"id": "1", "data": ["Only", "one"]}],
        [("First", "reply"), ("Only", "one")],
    ),
    "code_alpaca": ([{"instruction": "Print 1.", "input": "", "output": "print(1)"}], [("Print 1.", "print(1)")]),
    "magicoder": ([{"instruction": "Sort it.", "response": "sorted(it)"}], [("Sort it.", "sorted(it)")]),
    "openmath": (
        [
            {"question": "1+1?", "generated_solution": "2", "is_correct": True, "expected_answer": "2"},
            {"question": "2+2?", "generated_solution": "5", "is_correct": False, "expected_answer": "4"},
        ],
        [("1+1?", "2")],
    ),
    "math": ([{"source": "x.json", "instruction": "2x=4", "output": "x=2"}], [("2x=4", "x=2")]),
    "flan_knowledge": (FLAN, [("Is it?", "yes"), ("What?", "a thing")]),
    "flan_reasoning": (FLAN, [("Pick.", "(A)"), ("How?", "so")]),
    "flan_comprehension": (FLAN, [("Where?", "here")]),
}  # fmt: skip


@pytest.fixture(scope="module")
def paper() -> SweepFile:
    return load_sweep(PAPER).file


def at(path: Path, dataset: Dataset) -> Dataset:
    """The recipe over a local file in place of the hub's."""
    kept = dataset.model_dump(exclude={"hub", "revision", "subset", "split", "files"}, exclude_unset=True)
    return Dataset(path=str(path), **kept)


def test_every_dataset_of_the_paper_has_a_recipe_here(paper: SweepFile) -> None:
    assert FILES.keys() == paper.datasets.keys()


@pytest.mark.parametrize("name", FILES)
def test_recipe_makes_the_papers_rows_of_the_published_columns(name: str, paper: SweepFile, tmp_path: Path) -> None:
    rows, expected = FILES[name]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_rows(at(tmp_path / "d.jsonl", paper.datasets[name]), f"datasets.{name}")
    assert [turn for row in loaded.rows for turn in row.turns] == expected
    assert loaded.source_rows == len(rows)


def test_thousand_rows_of_each_are_the_first_of_the_twenty_thousand(paper: SweepFile) -> None:
    """So 1k is a part of 20k, `all` holds exactly the single ones' rows, and leave-one-out those but one's."""
    sweep = load_sweep(PAPER)
    small = {item.name: item.parts[0] for item in sweep.mixtures_of(["each-1k"])}
    large = {item.name: item.parts[0] for item in sweep.mixtures_of(["each-20k"])}
    for name, part in large.items():
        assert (part.dataset, part.count) == (small[name].dataset, 20000)
    (whole,) = sweep.mixtures_of(["all"])
    assert {part.name: part for part in whole.parts} == small
    for left_out in sweep.mixtures_of(["w/o"]):
        gone = left_out.name.removeprefix("w/o-")
        assert {part.name for part in left_out.parts} == small.keys() - {gone}
        assert sum(part.count or 0 for part in left_out.parts) == 9000
