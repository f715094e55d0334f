"""A sweep file that was edited between two runs: what changed is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_records import write_records
from small_sweep import small_sweep

from massive_sft.cli.app import main
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import find_changes, save_last_plan
from massive_sft.planning.plan import make_plan
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.semantics import MEASURE_SEMANTICS, TRAIN_SEMANTICS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a sweep has run: its plan is remembered."""
    path = small_sweep(tmp_path)
    save_last_plan(make_plan(load_sweep(path)), Ledger.open(tmp_path / "ledger"))
    return tmp_path


def changed(folder: Path, **edits: Any) -> list[str]:
    return find_changes(make_plan(load_sweep(small_sweep(folder, **edits))))


def test_sweep_that_never_ran_or_was_not_edited_says_nothing(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert changed(folder) == []
    assert changed(tmp_path_factory.mktemp("other")) == []


def test_changed_setting_is_named_with_both_values_and_what_it_makes_of_the_cells(folder: Path) -> None:
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 8},
        "full": {"method": "full", "lr": 2e-3},
        "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
    }
    assert changed(folder, settings=settings) == [
        "settings.full.lr: 0.002, was 0.001",
        "2 new cells, 3 stay, 2 no longer asked for (what is done of them stays in the ledger)",
    ]


def test_changed_resources_leave_the_cells_alone(folder: Path) -> None:
    lines = changed(folder, resources=[{"zero": 2}])
    [line] = [line for line in lines if line.startswith("resources")]
    assert line == "resources[0]: new, zero 2", "what the file says, not its defaults"
    assert lines[-1] == "all 5 cells as before"
    assert not any(line.endswith(("null", "was []")) for line in lines), "what there is not needs no line"


def test_changed_data_under_an_unchanged_file_are_said_until_the_next_run(folder: Path) -> None:
    path = small_sweep(folder)
    data = folder / "world" / "data" / "facts.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    lines = find_changes(make_plan(load_sweep(path)))
    assert [line.partition(":")[0] for line in lines] == [
        "what the file names",
        "4 new cells, 1 stay, 4 no longer asked for (what is done of them stays in the ledger)",
    ]
    save_last_plan(make_plan(load_sweep(path)), Ledger.open(folder / "ledger"))
    assert find_changes(make_plan(load_sweep(path))) == []


def test_data_that_changed_under_some_mixtures_are_named(tmp_path: Path) -> None:
    path = small_sweep(tmp_path, mixtures={"one": {"each": ["facts", "arith"], "samples": 8}})
    save_last_plan(make_plan(load_sweep(path)), Ledger.open(tmp_path / "ledger"))
    arith = tmp_path / "world" / "data" / "arith.jsonl"
    arith.write_text("".join(arith.read_text().splitlines(keepends=True)[:-1]))
    assert find_changes(make_plan(load_sweep(path)))[0] == (
        "what the file names: data of arith, or the commit that is pinned"
    )


def test_cells_that_another_sweep_finished_are_no_change_of_this_one(folder: Path) -> None:
    """They lack what this sweep asks for since its last run, which did not come to them."""
    path = small_sweep(folder)
    plan = make_plan(load_sweep(path))
    lacking = replace(plan, base=tuple(replace(cell, recorded=Status.COMPLETE) for cell in plan.base))
    assert all(cell.unmet for cell in lacking.base)
    assert find_changes(lacking) == []
    last = folder / "ledger" / "sweeps" / "small" / "plan.json"
    last.write_text(json.dumps(json.loads(last.read_text()) | {"asked": []}))
    assert find_changes(lacking)[-1].startswith("1 finished cell is scored (facts_mc-0shot")
    item = next(item for item in lacking.base[0].unmet if item.is_benchmark)
    last.write_text(json.dumps(json.loads(last.read_text()) | {"asked": [f"{item.id.partition(' ')[0]} 0123"]}))
    assert find_changes(lacking)[0].startswith(f"{item.label}: file, data or version, or the tokens")


def test_last_run_counts_and_a_damaged_memory_is_none(folder: Path) -> None:
    edited = small_sweep(folder, measures=["perplexity"])
    save_last_plan(make_plan(load_sweep(edited)), Ledger.open(folder / "ledger"))
    assert find_changes(make_plan(load_sweep(edited))) == []
    for damaged in (
        "{",
        "[]",
        '{"schema": 1, "file": [], "cells": {}}',
        '{"schema": 1, "file": {}, "cells": 3, "kept": []}',
    ):
        (folder / "ledger" / "sweeps" / "small" / "plan.json").write_text(damaged)
        assert find_changes(make_plan(load_sweep(edited))) == []


def with_token_length(record: Record) -> Record:
    if record.trajectory is None:
        return record
    return record.model_copy(update={"measures": record.measures | {"token_length": {"schema": 1}}})


def test_other_semantics_are_said_with_the_finished_cells_they_touch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_sweep(folder)
    write_records(make_plan(load_sweep(path)), with_token_length)
    assert all(item.is_done for item in make_plan(load_sweep(path)).cells)
    for run in make_plan(load_sweep(path)).runs:
        for epoch in run.trajectory.snapshots:
            (folder / "ledger" / "trajectories" / run.trajectory.id / "snapshots" / f"epoch-{epoch}").mkdir(
                parents=True
            )
    monkeypatch.setattr("massive_sft.sweep.semantics.SCORE_SEMANTICS", 7)
    monkeypatch.setattr("massive_sft.planning.changes.SCORE_SEMANTICS", 7)
    monkeypatch.setitem(MEASURE_SEMANTICS, "token_length", 3)
    lines = find_changes(make_plan(load_sweep(path)))
    assert lines[0].startswith("scoring of this massive-sft gives other results (semantics ") and "-> 7)" in lines[0]
    assert lines[1:] == [
        "token_length of this massive-sft gives other results (semantics 1 -> 3)",
        "all 5 cells as before",
        "5 finished cells are scored again (facts_mc-0shot, facts_gen-0shot) and 4 finished cells are measured again "
        "(token_length); nothing is trained for it",
    ]
    for snapshot in (folder / "ledger").glob("trajectories/*/snapshots/epoch-2"):
        snapshot.rmdir()
    assert find_changes(make_plan(load_sweep(path)))[-1].endswith(
        "; it takes 2 trainings, for snapshots were removed: run with --retrain"
    )


def test_cell_of_which_another_sweep_lacks_something_is_finished_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def partial(record: Record) -> Record:
        record = with_token_length(record)
        epoch = record.coordinates["epoch"]
        scores = record.scores if epoch != 1 else {}  # what this sweep asked was not there either
        missing = {"extra-0shot": "no such task"}
        return record.model_copy(update={"status": Status.PARTIAL, "missing": missing, "scores": scores})

    path = small_sweep(folder)
    write_records(make_plan(load_sweep(path)), partial)
    plan = make_plan(load_sweep(path))
    whole = sum(cell.is_done for cell in plan.cells)
    assert 0 < whole < len(plan.cells)
    monkeypatch.setattr("massive_sft.sweep.semantics.SCORE_SEMANTICS", 7)
    assert find_changes(make_plan(load_sweep(path)))[-1].startswith(f"{whole} finished cells are scored again")


def test_ledger_of_before_the_numbers_were_kept_is_of_the_first(folder: Path) -> None:
    plan = folder / "ledger" / "sweeps" / "small" / "plan.json"
    content = json.loads(plan.read_text())
    content["file"] = {place: value for place, value in content["file"].items() if "semantics" not in place}
    plan.write_text(json.dumps(content))
    numbers = [line for line in changed(folder) if "semantics" in line]
    assert any(
        line.startswith(f"training of this massive-sft gives other results (semantics 1 -> {TRAIN_SEMANTICS})")
        for line in numbers
    )
    assert not any("vLLM" in line for line in numbers), "which nothing asks for"


def test_password_in_an_address_is_neither_kept_nor_told(folder: Path) -> None:
    edits = {"tracking": {"mlflow": "http://me:hunter2@localhost:1"}}
    lines = changed(folder, **edits)
    assert any("localhost" in line for line in lines)
    save_last_plan(make_plan(load_sweep(small_sweep(folder, **edits))), Ledger.open(folder / "ledger"))
    assert "hunter2" not in (folder / "ledger" / "sweeps" / "small" / "plan.json").read_text() + "".join(lines)


def test_plan_prints_what_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_sweep(folder, measures=["perplexity"])
    monkeypatch.setattr(sys, "argv", ["massive-sft", "plan", str(path)])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "changed since the sweep's last run:" in printed
    assert 'measures[1]: no longer there, was "layer_change"' in printed
