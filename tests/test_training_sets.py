"""Training sets are tokenised before a run: here as long as that takes little, then by processes beside the checks."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from processes import descendants
from small_sweep import small_sweep

from massive_sft.core.errors import MassiveSFTError
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, make_plan, token_key
from massive_sft.running import check as checks
from massive_sft.running.check import training_sets
from massive_sft.running.check.training_sets import TrainingSets
from massive_sft.running.token_process import tokenise
from massive_sft.sweep.load import load_sweep


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    mixtures = {f"of{samples}": {"each": "facts", "samples": samples} for samples in (8, 16, 24)}
    block = {"name": "A", "model": "all", "mixture": list(mixtures), "setting": "full", "schedule": "constant"}
    blocks = [block | {"horizon": 1, "snapshots": [1]}]
    return make_plan(load_sweep(small_sweep(tmp_path, mixtures=mixtures, blocks=blocks, measures=[])))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, and no patience for tokenising in this process."""
    monkeypatch.setattr(training_sets, "HERE_S", -1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def cached(plan: Plan, ledger: Ledger) -> list[bytes]:
    names = [f"{token_key(run.trajectory.recipe)}.npz" for run in plan.todo]
    return [(ledger.cache_dir("tokens") / name).read_bytes() for name in names]


def test_check_tokenises_in_other_processes_beside_benchmarks_and_caches_what_this_one_does(
    plan: Plan, tmp_path: Path, impatient: None
) -> None:
    said: list[str] = []
    assert checks.check(plan, said.append) == []
    begun, built = said.index("data: 3 training sets in 2 processes"), said.index("data facts for llama")
    assert any(text.startswith("benchmark ") for text in said[begun:built])
    assert not [process for process in descendants() if "token_process" in process.title], "they are over"
    training_sets.HERE_S = 1e6
    with TrainingSets(plan.todo, here := Ledger.open(tmp_path / "here")) as sets:
        sets.begin(said.append)
    assert said[-3:] == ["data facts for llama"] * 3
    assert cached(plan, plan.open_ledger()) == cached(plan, here)


def test_process_answers_as_this_one_and_one_that_is_killed_costs_its_set_alone(plan: Plan, tmp_path: Path) -> None:
    process, here = training_sets.TokenProcess(tmp_path / "there"), Ledger.open(tmp_path / "here")
    first, second, third = plan.todo
    data = Path(str(plan.sweep.file.datasets["facts"].path))
    try:
        answer, rows = process.tokenise(first), data.read_bytes()
        assert answer == tokenise(first, here) and not isinstance(answer, MassiveSFTError)
        data.write_text('{"instruction": "a"}\n')
        wrong = process.tokenise(second)
        assert isinstance(wrong, MassiveSFTError) and str(wrong) == str(tokenise(second, here))
        data.write_bytes(rows)
        (running,) = [each.pid for each in descendants() if "token_process" in each.title]
        os.kill(running, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (running, signal.SIGKILL)).start()
        killed, again = process.tokenise(second), process.tokenise(third)
    finally:
        process.end()
    assert "ended with -9 (out of memory?)" in str(killed)
    assert not isinstance(again, MassiveSFTError)
