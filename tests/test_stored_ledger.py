"""A ledger that an earlier version wrote (schema 1: ``record-<n>.json``, one index) reads the same, and goes on.

``data/ledger_schema_1`` is what a sweep of three cells left, without weights and caches, and a cell that failed ten
times before it was complete.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from massive_sft.core.errors import Unsupported
from massive_sft.ledger import marker
from massive_sft.ledger.last_plan import read_last_plan, sweeps_keeping_snapshot
from massive_sft.ledger.lease import read_lease
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger

STORED = Path(__file__).parent / "data" / "ledger_schema_1"
RETRIED = "00000000000000bb"  # record-1 ... record-11
TRAINED = {"80fab46f94768efe": "ed08fbfcdb235a66", "ab7f89630244a782": "78121dbe7a2ea8a2"}
BASE = "4ab12e1316e797cc"
CELLS = {RETRIED: "00000000000000aa", BASE: None} | TRAINED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return shutil.copytree(STORED, tmp_path / "root")


def stored_records(root: Path) -> dict[str, dict[str, object]]:
    """Read the newest records without the ledger, by the greatest number in their names."""
    cells = sorted((root / "cells").iterdir())
    newest = {cell: max(cell.glob("record-*"), key=lambda path: int(path.stem.partition("-")[2])) for cell in cells}
    return {cell.name: json.loads(path.read_bytes())["content"] for cell, path in newest.items()}


def dumped(record: Record | None) -> dict[str, object]:
    assert record is not None
    return record.model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize("create", [False, True])
def test_stored_ledger_reads_the_same_before_and_after_it_is_written_to(root: Path, create: bool) -> None:
    expected = stored_records(root)
    ledger = Ledger.open(root, create=create)
    assert {record.cell: dumped(record) for record in ledger.records()} == expected
    for _ in range(2):
        states = ledger.states(CELLS)
        assert {state.status for state in states.values()} == {Status.COMPLETE}
        assert {cell: state.answers for cell, state in states.items()} == {
            record.cell: record.answers for record in ledger.records()
        }
    assert {cell: entry.trajectory for cell, entry in ledger.entries().items()} == CELLS
    for cell, trajectory in TRAINED.items():
        record = ledger.read_record(cell)
        assert record is not None and record.files
        assert all(ledger.verified_file(record, name).is_file() for name in record.files)
        assert ledger.read_cell(cell)["train_semantics"] == 1
        ledger.write_cell(cell, ledger.read_cell(cell))  # the same content, though sealed by another version
        assert [verify_folder(folder).keys() for folder in ledger.training_dirs(trajectory)]
    assert read_last_plan(ledger.sweep("small")) is not None
    assert sweeps_keeping_snapshot(ledger.sweeps, BASE) == []
    leases = [
        read_lease(ledger.lease_of(home)) for home in ledger.cell_and_trajectory_dirs() if (home / "lease").is_dir()
    ]
    assert [seen is not None and (seen.number, seen.released) for seen in leases] == [(1, True)] * 5
    assert not ledger.corrupt


@pytest.mark.parametrize(("cell", "last", "lease"), [(RETRIED, 11, 1), (BASE, 1, 2)])
def test_stored_ledger_is_gone_on_with_above_its_records(root: Path, cell: str, last: int, lease: int) -> None:
    ledger = Ledger.open(root)
    newer = Record(**stored_records(root)[cell] | {"attempt": 12})
    for claimed in (False, True):
        held = ledger.lease_cell(cell, "next") if claimed else None
        path = ledger.write_record(newer, held.claim if held else None)
        assert path.name == (f"record-{lease:08d}-0001.json" if held else f"record-00000000-{last + 1:04d}.json")
        assert dumped(ledger.read_record(cell)) == dumped(newer)
        assert Ledger.open(root).entries()[cell].record == path.name
        if held:
            held.release()
    assert ledger.statuses(CELLS).keys() == CELLS.keys()


def test_stored_ledger_becomes_one_of_this_schema_when_it_is_opened_for_writing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(path for path in root.glob("cells/*/record-*"))
    Ledger.open(root, create=False)
    assert json.loads((root / "ledger.json").read_text()) == {"schema": 1}
    Ledger.open(root)
    assert json.loads((root / "ledger.json").read_text()) == {"schema": marker.WITH_CELLS}
    assert "schema 1 is now 2; older versions of massive-sft refuse it" in caplog.text
    assert sorted(path for path in root.glob("cells/*/record-*")) == before
    assert not (root / "index.jsonl").exists()
    monkeypatch.setattr(marker, "SCHEMA", 1)
    for create in (False, True):
        with pytest.raises(Unsupported, match="schema 2, this version reads up to 1"):
            Ledger.open(root, create)
