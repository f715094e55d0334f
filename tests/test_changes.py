"""A sweep file that was edited between two runs: what changed is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from small_sweep import small_sweep

from massive_sft.changes import changes, remember
from massive_sft.cli import main
from massive_sft.ledger.store import Ledger
from massive_sft.plan import make_plan
from massive_sft.sweep.load import load_sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a sweep has run: its plan is remembered."""
    path = small_sweep(tmp_path)
    remember(make_plan(load_sweep(path)), Ledger.open(tmp_path / "ledger"))
    return tmp_path


def changed(folder: Path, **edits: Any) -> list[str]:
    return changes(make_plan(load_sweep(small_sweep(folder, **edits))))


def test_sweep_that_never_ran_or_was_not_edited_says_nothing(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert changed(folder) == []
    assert changed(tmp_path_factory.mktemp("other")) == []


def test_changed_setting_is_named_with_both_values_and_what_it_makes_of_the_cells(folder: Path) -> None:
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 32},
        "full": {"method": "full", "lr": 2e-3},
        "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
    }
    assert changed(folder, settings=settings) == [
        "settings.full.lr: 0.002, was 0.001",
        "2 cells are new, 3 stay, 2 are no longer asked for (what is done of them stays in the ledger)",
    ]


def test_changed_resources_leave_the_cells_alone(folder: Path) -> None:
    lines = changed(folder, resources=[{"zero": 2}])
    [line] = [line for line in lines if line.startswith("resources")]
    assert line.startswith("resources[0]: new, ") and "zero 2" in line
    assert lines[-1] == "all 5 cells are the same ones"
    assert not any(line.endswith(("null", "was []")) for line in lines), "what there is not needs no line"


def test_changed_data_under_an_unchanged_file_are_said_until_the_next_run(folder: Path) -> None:
    path = small_sweep(folder)
    data = folder / "world" / "data" / "facts.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    lines = changes(make_plan(load_sweep(path)))
    assert [line.partition(":")[0] for line in lines] == [
        "what the file names",
        "4 cells are new, 1 stay, 4 are no longer asked for (what is done of them stays in the ledger)",
    ]
    remember(make_plan(load_sweep(path)), Ledger.open(folder / "ledger"))
    assert changes(make_plan(load_sweep(path))) == []


def test_last_run_counts_and_a_damaged_memory_is_none(folder: Path) -> None:
    edited = small_sweep(folder, measures=["perplexity"])
    remember(make_plan(load_sweep(edited)), Ledger.open(folder / "ledger"))
    assert changes(make_plan(load_sweep(edited))) == []
    for damaged in (
        "{",
        "[]",
        '{"schema": 1, "file": [], "cells": {}}',
        '{"schema": 1, "file": {}, "cells": 3, "kept": []}',
    ):
        (folder / "ledger" / "sweeps" / "small" / "plan.json").write_text(damaged)
        assert changes(make_plan(load_sweep(edited))) == []


def test_password_in_an_address_is_neither_kept_nor_told(folder: Path) -> None:
    edits = {"tracking": {"mlflow": "http://me:hunter2@localhost:1"}}
    lines = changed(folder, **edits)
    assert any("localhost" in line for line in lines)
    remember(make_plan(load_sweep(small_sweep(folder, **edits))), Ledger.open(folder / "ledger"))
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
