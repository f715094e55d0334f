"""Where trainings come from, without Ray: known at once, or decided as scores come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from ray.tune.search import Searcher
from sample_records import plan_of, record, sweep_file

from massive_sft.planning.plan import RunPlan
from massive_sft.running.events import CellRecorded
from massive_sft.running.work import FixedWork, WorkSource
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.trial_source import Assigner

ONE = Shape(1, 1.0, 0.0)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunPlan]:
    return list(plan_of(sweep_file(tmp_path)).todo)


class Search:
    """Tries two trainings, and goes on with a third, at once, when both have a score."""

    grows = True

    def __init__(self, runs: Sequence[RunPlan]):
        self.known: Sequence[RunPlan] = ()
        self.rungs, self.promoted, self.scored = list(runs[:2]), runs[2], set[str]()

    def next(self) -> tuple[RunPlan, float] | None:
        if self.rungs:
            return self.rungs.pop(0), 0.0
        if len(self.scored) == 2:
            self.scored.add("promoted")
            return self.promoted, 1.0
        return None

    def told(self, event: CellRecorded) -> None:
        self.scored.add(event.cell.id)

    def is_exhausted(self) -> bool:
        return "promoted" in self.scored


class Tune:
    """Asks an assigner for trials as Tune does, and keeps what it gave."""

    def __init__(self, work: WorkSource, most: int = 10):
        self.assigned: list[tuple[str, float, bool]] = []
        self.closed = 0
        self.most = most
        self.assigner = Assigner(work, lambda run: ONE, self.assign, self.close, lambda: self.most)

    def assign(self, run: RunPlan, shape: Shape, priority: float, is_unexpected: bool) -> None:
        self.assigned.append((run.trajectory.id, priority, is_unexpected))

    def close(self) -> None:
        self.closed += 1


def test_trainings_of_a_plan_come_in_their_order_and_no_more_at_a_time_than_are_useful(runs: list[RunPlan]) -> None:
    tune = Tune(FixedWork(runs), most=2)
    ids = [run.trajectory.id for run in runs]
    assert [tune.assigner.suggest(trial) for trial in "abc"] == [{"trajectory": ids[0]}, {"trajectory": ids[1]}, None]
    tune.most = 3  # a node has come
    assert tune.assigner.suggest("c") == {"trajectory": ids[2]}
    for ended, begun, identity in zip("abcde", "defgh", ids[3:], strict=True):
        tune.assigner.on_trial_complete(ended, error=ended == "b")
        assert tune.assigner.suggest(begun) == {"trajectory": identity}
    assert tune.assigner.suggest("i") == Searcher.FINISHED
    assert tune.assigned == [(identity, 0.0, False) for identity in ids]
    assert tune.closed == 1


def test_search_is_told_of_scores_and_its_promotion_begins_first(runs: list[RunPlan]) -> None:
    tune = Tune(Search(runs))
    assert [tune.assigner.suggest(trial) for trial in "abc"][2] is None, "nothing now, and not the end"
    assert tune.closed == 0
    for run in runs[:2]:
        cell = run.cells[0].cell
        tune.assigner.told(CellRecorded(cell, record(cell.id, {})))
    assert tune.assigner.suggest("c") == {"trajectory": runs[2].trajectory.id}
    assert tune.assigner.suggest("d") == Searcher.FINISHED
    assert tune.assigned[-1] == (runs[2].trajectory.id, 1.0, True)
    assert tune.closed == 1


def test_more_of_a_trajectory_waits_until_its_earlier_trial_is_over(runs: list[RunPlan]) -> None:
    """What the pool keeps for the earlier trial is dropped when that ends."""
    search = Search([runs[0], runs[1], runs[0]])
    tune = Tune(search)
    assert [tune.assigner.suggest(trial) for trial in "ab"] == [{"trajectory": run.trajectory.id} for run in runs[:2]]
    search.scored = {"one", "another"}
    assert tune.assigner.suggest("c") is None, "its scores are there, its trial still is"
    assert tune.closed == 0
    tune.assigner.on_trial_complete("a")
    assert tune.assigner.suggest("c") == {"trajectory": runs[0].trajectory.id}
    assert tune.assigner.suggest("d") == Searcher.FINISHED
    assert tune.assigned[-1] == (runs[0].trajectory.id, 1.0, True)
