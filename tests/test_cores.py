"""How many cores a process counts on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from massive_sft.core import cores


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("max 100000\n", 8),
        ("300000 100000\n", 3),
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_the_container_s_quota(
    written: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "_GROUP", tmp_path)
    if written is not None:
        (tmp_path / "cpu.max").write_text(written)
    assert cores.usable_cores() == expected
