"""The check for machines with a GPU: every stage of it that can run without one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_stages_of_the_gpu_check_run_in_tiny_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layouts and resuming are left out: ``test_engine`` and ``test_resume`` try them all."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu")
    module.main(["--dry", "--only", "MTSD", str(tmp_path)])
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    wrong = [result for result in results if {"failed", "skipped", "error"} & set(result) or result.get("ok") is False]
    assert not wrong
    assert [stage for stage in "MTSD" if any(result["stage"] == stage for result in results)] == list("MTSD")
    assert len(results) >= 16 and capsys.readouterr().out.count("\n") >= len(results)
