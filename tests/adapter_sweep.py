"""A sweep of three adapters of one base, which can take their steps together, and what its records have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_sweep import small_sweep

from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger

SETTINGS = {
    "defaults": {"method": "lora", "max_length": 128, "precision": "fp32", "batch": 8},
    "one": {"lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
    "two": {"lr": 1e-3, "lora": {"rank": 8, "alpha": 8}},
    "three": {"lr": 1e-2, "lora": {"rank": 2}},
}


def adapter_sweep(folder: Path, at_once: int, **changes: Any) -> Path:
    """Write a sweep of three adapters, six steps each, that scores nothing."""
    folder.mkdir(exist_ok=True)
    block = {"name": "A", "model": "all", "mixture": "one", "setting": ["one", "two", "three"], "schedule": "constant"}
    return small_sweep(
        folder,
        settings=SETTINGS,
        blocks=[block | {"horizon": 2, "snapshots": [1, 2]}],
        resources=[{"lora_at_once": at_once}],
        measures=["layer_change"],
        **{"evaluation": {"base": False, "tasks": []}, **changes},
    )


def records(folder: Path) -> dict[str, Record]:
    found = Ledger.open(folder / "ledger", create=False).records()
    return {f"{record.coordinates['setting']}-{record.coordinates['epoch']}": record for record in found}


def assert_same_results(found: dict[str, Record], expected: dict[str, Record]) -> None:
    assert found.keys() == expected.keys()
    for name, record in found.items():
        assert record.status is Status.COMPLETE, (name, record.error)
        for loss in ("first_loss", "last_loss"):
            assert record.training[loss] == pytest.approx(expected[name].training[loss], abs=2e-6)
        moved, before = (one.measures["layer_change"]["relative"] for one in (record, expected[name]))
        assert moved == pytest.approx(before, rel=1e-4)
