"""The watchdog, fed with states and a clock: what it says, and what it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.watchdog import Limits, State, Stuck, Watchdog, is_starting, is_working, who_waits

ONE = Shape(1, 1.0, 0.0)
LIMITS = Limits()


def pool(**changes: Any) -> State:
    nothing = {"queued": {}, "expected": {}, "held": {}, "idle": {}, "up": set(), "begun": set()}
    return nothing | changes


def queue(**changes: Any) -> State:
    return {"waiting": 0, "out": [], "begun": set(), "judging": set()} | changes


class Run:
    """A run that moves as it is told, looked at every half a second of a clock of its own."""

    def __init__(self) -> None:
        self.now, self.progress = 0.0, 0
        self.said: list[str] = []
        self.watchdog = Watchdog(self.said.append, lambda: self.now, LIMITS)

    def watch(self, seconds: float, pool: State, queue: State, lanes: Iterable[str] = (), scores: bool = True) -> None:
        end, names = self.now + seconds, list(lanes)
        while self.now < end:
            self.now += 0.5
            self.watchdog.look(
                self.progress,
                is_working(pool, queue),
                is_starting(pool, queue, names, scores),
                lambda: who_waits(pool, queue, names, {"CPU": 0.0}, {"CPU": 2.0}),
            )


WAITING = pool(queued={ONE: 2}, begun={"trial"})


def test_start_of_ten_minutes_is_no_standstill() -> None:
    run = Run()
    run.watch(600, WAITING, queue(), ["lane"])
    assert len(run.said) == 9
    assert "2 trainings wait for a lane of 1 x 1 CPU; lane lane waits for its place; free: 0 CPU; " in run.said[0]
    assert run.said[0].endswith("other jobs of the cluster have 2 CPU")


def test_lane_that_does_not_start_within_its_limit_ends_the_run() -> None:
    run = Run()
    with pytest.raises(Stuck, match="lane lane waits for its place"):
        run.watch(1000, WAITING, queue(), ["lane"])
    assert run.now > LIMITS.start_s


def test_starts_are_progress() -> None:
    run = Run()
    for _ in range(10):  # one lane after another comes up
        run.watch(800, WAITING, queue(), ["lane"])
        run.progress += 1
    assert run.now == 8000


def test_nobody_who_works_or_starts_ends_the_run_in_three_minutes() -> None:
    run = Run()
    with pytest.raises(Stuck, match="lane lane is idle"):
        run.watch(1000, pool(queued={ONE: 1}, idle={"lane": 9.0}, begun={"trial"}), queue(), ["lane"], scores=False)
    assert run.now < 200


def test_cells_in_a_reader_wait_and_are_no_work() -> None:
    read = queue(out=["4ab1"], begun=set())
    run = Run()
    with pytest.raises(Stuck, match="1 cells wait for a scorer; no lane and no scorer works"):
        run.watch(2000, pool(), read)
    assert run.now < 1000


def test_work_in_hand_may_be_silent_for_hours() -> None:
    run = Run()
    run.watch(4 * 3600, pool(held={"lane": "order"}, queued={ONE: 1}), queue(), ["lane"])
    run.watch(4 * 3600, pool(), queue(out=["cell"], begun={"cell"}))
    assert all("nothing moved for" in line for line in run.said)
    assert "lane lane trains order" in run.said[0]


def test_pool_that_does_not_answer_is_noticed() -> None:
    run = Run()
    run.watch(10, WAITING, queue(), ["lane"])
    with pytest.raises(Stuck, match="queues have not answered for"):
        for _ in range(10):
            run.now += LIMITS.answer_s
            run.watchdog.no_answer()
    assert run.now < 300
    assert run.said
