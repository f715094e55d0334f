"""Who gets which GPU, decided without Ray: placement, roles that move, fairness, and the paper's grid simulated."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from massive_sft.scheduling.allocation import PLACE_S, TURN_S, Allocator
from massive_sft.scheduling.cluster_state import (
    CPU_START_S,
    START_S,
    Cells,
    Decision,
    Group,
    Lane,
    Orders,
    ScoringRules,
    Situation,
)
from massive_sft.scheduling.nodes import Node, Room, Shape

ONE, TWO, FOUR = (Shape(workers, 1, 1) for workers in (1, 2, 4))
CPU = Shape(1, 1, 0)
RULES = ScoringRules(ONE, None, 1e12)
NOTHING = Cells(0, 0.0, 0.0, more=True)


def nodes(*gpus: float, kinds: str = "") -> tuple[Node, ...]:
    """Return nodes a, b, ... with so many GPUs each, of the kinds that the letters stand for."""
    named = kinds or "x" * len(gpus)
    return tuple(Node("abcdefgh"[n], 16, count, named[n]) for n, count in enumerate(gpus))


def lane(name: str, shape: Shape, where: str, *, busy: bool = True, up_s: float = 1e6, left_s: float = 0.0) -> Lane:
    return Lane(name, shape, tuple(where), busy, up_s, 0.0 if busy else up_s, left_s, leaving=False)


def group(name: str, node: str, size: int = 1, *, busy: int | None = None, left_s: float = 0.0) -> Group:
    return Group(name, node, size, size if busy is None else busy, left_s, leaving=False)


def queued(**counts: int) -> dict[Shape, Orders]:
    """Return so many orders of ten minutes of ``one``, ``two`` and ``four``."""
    shapes = {"one": ONE, "two": TWO, "four": FOUR, "cpu": CPU}
    return {shapes[name]: Orders(count, 0, 600.0, 60.0) for name, count in counts.items()}


def cells(count: int, seconds: float = 600.0, size_bytes: float = 0.0) -> Cells:
    return Cells(count, count * seconds, count * size_bytes, more=True)


def decide(now: Situation, rules: ScoringRules = RULES) -> Decision:
    return Allocator(rules).decide(now)


def at(where: tuple[Node, ...], **facts: Any) -> Situation:
    quiet: dict[str, Any] = {"elapsed_s": 1e6, "lanes": (), "groups": (), "orders": {}, "cells": NOTHING}
    return Situation(nodes=where, **{**quiet, **facts})


# Where a gang goes


def test_gang_that_fits_a_node_is_never_spread() -> None:
    room = Room(nodes(4, 4))
    room.take(TWO, "ab")
    assert room.place(FOUR) is None, "three are free on each"
    assert room.place(TWO) == ("a", "a")
    room.give(TWO, "b")
    assert room.place(FOUR) == ("b",) * 4


def test_small_gangs_fill_a_node_before_they_break_another() -> None:
    room = Room(nodes(4, 4))
    room.take(ONE, "b")
    assert room.place(ONE) == ("b",)


def test_gang_larger_than_a_node_takes_few_nodes_of_one_kind() -> None:
    assert Room(nodes(2, 4, 4, kinds="xxx")).place(Shape(8, 1, 1)) == (*"bbbb", *"cccc")
    assert Room(nodes(4, 4, kinds="xy")).place(Shape(8, 1, 1)) is None, "of two kinds"
    assert Room(nodes(4, 4, 4, kinds="yxx")).place(Shape(8, 1, 1)) == (*"bbbb", *"cccc")


def test_kind_that_a_rule_names_is_asked_of_the_node() -> None:
    room = Room(nodes(4, 4, kinds="xy"))
    assert room.place(Shape(2, 1, 1, "y")) == ("b", "b")
    assert room.place(Shape(2, 1, 1, "z")) is None
    assert not room.could_hold(Shape(8, 1, 1, "y"))


def test_memory_and_cpus_of_a_node_are_room_too() -> None:
    room = Room([Node("a", 8, 8, "x", 100e9)])
    assert room.place(Shape(4, 1, 1, "", 30e9)) is None
    assert room.place(Shape(4, 3, 1)) is None
    assert room.place(Shape(4, 2, 1, "", 25e9)) == ("a",) * 4


# Lanes


def test_lost_lane_is_replaced_however_many_there_are() -> None:
    lanes = tuple(lane(str(n), ONE, "a") for n in range(3))
    decision = decide(at(nodes(4), lanes=lanes, orders=queued(one=2)))
    assert decision.start_lanes == [(ONE, ("a",))]


def test_idle_lane_ends_as_soon_as_others_could_use_its_room() -> None:
    """Of a shape that has nothing queued, though more of it is to come."""
    now = at(nodes(2), lanes=(lane("two", TWO, "aa", busy=False),), orders={TWO: Orders(0, 3, 600.0), **queued(one=3)})
    assert decide(now).end_lanes == ["two"]
    now = replace(now, orders={TWO: Orders(0, 3, 600.0)})
    assert not decide(now).end_lanes
    assert decide(replace(now, cells=cells(1))).end_lanes == ["two"], "scoring could use it as well"


def test_idle_lane_stays_while_a_search_may_ask_for_more_and_nobody_could_use_its_room() -> None:
    now = at(nodes(1), lanes=(lane("one", ONE, "a", busy=False),), orders={ONE: Orders(0, 0, 600.0)}, grows=True)
    assert not decide(now).end_lanes
    assert decide(replace(now, cells=cells(1))).end_lanes == ["one"], "what the search waits for has no other room"
    assert decide(replace(now, grows=False)).end_lanes == ["one"]


def test_what_is_idle_ends_for_what_waits_long_for_its_place() -> None:
    """Another run on the cluster has the place, and may wait for what is idle here: neither would ever go on."""
    waiting = replace(lane("waits", ONE, "a", busy=False), idle_s=0.0, waits_s=PLACE_S / 2)
    now = at(nodes(2), lanes=(waiting,), groups=(group("idle", "a", busy=0),), orders=queued(one=1))
    assert decide(now).end_groups == []
    late = replace(now, lanes=(replace(waiting, waits_s=PLACE_S + 1),))
    assert decide(late).end_groups == ["idle"]
    assert decide(replace(late, cells=cells(1))).end_groups == [], "it takes the cell that waits"
    idle, expected = lane("idle", ONE, "a", busy=False), {ONE: Orders(0, 2, 600.0, 60.0)}
    blocked = replace(group("waits", "a", busy=0), waits_s=PLACE_S + 1)
    decision = decide(at(nodes(2), lanes=(idle,), groups=(blocked,), orders=expected, cells=cells(1)))
    assert (decision.end_lanes, decision.start_lanes) == (["idle"], [])


def test_work_that_has_no_room_is_told_with_its_shape() -> None:
    now = at(nodes(2), lanes=(lane("one", ONE, "a"), lane("other", ONE, "a")), orders=queued(one=3))
    assert decide(now).lacking == {ONE: 3}
    assert decide(replace(now, nodes=nodes(8))).lacking == {}
    assert decide(at(nodes(2), orders=queued(four=1))).lacking == {FOUR: 1}
    cpus = ScoringRules(CPU, None, 1e12)
    full = (group("full", "a", 8),)
    assert decide(at(nodes(0), groups=full, cells=cells(9), orders=queued(cpu=1)), cpus).lacking == {CPU: 9}


def test_idle_lane_stays_where_its_room_helps_nobody() -> None:
    where = (*nodes(2, kinds="x"), Node("b", 16, 2, "y"))
    lanes = (lane("x", Shape(2, 1, 1, "x"), "aa", busy=False), lane("y", Shape(2, 1, 1, "y"), "bb"))
    orders = {Shape(2, 1, 1, "x"): Orders(0, 1, 600.0), Shape(2, 1, 1, "y"): Orders(1, 0, 600.0)}
    assert not decide(at(where, lanes=lanes, orders=orders)).end_lanes


def test_scorers_that_had_all_cpus_give_the_lanes_half_back_when_training_goes_on() -> None:
    """As when a search proposes after all is scored: a lane that starts beside them would wait for ever."""
    rules, where = ScoringRules(CPU, None, 1e12), (Node("a", 2),)
    alone = decide(at(where, cells=cells(2)), rules)
    assert alone.start_groups == [("a", 1), ("a", 1)]
    groups = (group("1", "a"), group("2", "a"))
    now = at(where, groups=groups, orders=queued(cpu=1), cells=cells(1))
    decision = decide(now, rules)
    assert (decision.end_groups, decision.start_lanes, decision.start_groups) == (["2"], [], [])
    decision = decide(replace(now, groups=(groups[0], replace(groups[1], leaving=True))), rules)
    assert (decision.end_groups, decision.start_lanes) == ([], []), "it still has a cell"
    assert decide(replace(now, groups=groups[:1]), rules).start_lanes == [(CPU, ("a",))]


def test_room_is_shared_by_the_work_that_waits() -> None:
    decision = decide(at(nodes(8), orders={ONE: Orders(30, 0, 600.0), TWO: Orders(10, 0, 600.0)}))
    started = [shape for shape, _ in decision.start_lanes]
    assert (started.count(ONE), started.count(TWO)) == (6, 1) or (started.count(ONE), started.count(TWO)) == (4, 2)


def test_shape_without_room_is_kept_a_node_and_gets_it() -> None:
    """Two lanes that had their turn end after their orders, and nobody else takes what they give back."""
    allocator = Allocator(RULES)
    lanes = tuple(lane(f"{node}{n}", ONE, node, left_s=100 if node == "a" else 50) for node in "ab" for n in range(4))
    now = at(nodes(4, 4), lanes=lanes, orders=queued(one=20, four=1))
    assert sorted(allocator.decide(now).end_lanes) == ["b0", "b1", "b2", "b3"]
    leaving = tuple(replace(item, leaving=item.nodes == ("b",)) for item in lanes)
    assert allocator.decide(replace(now, lanes=(*leaving[:4], *leaving[5:]))).start_lanes == []
    assert allocator.decide(replace(now, lanes=leaving[:4])).start_lanes == [(FOUR, ("b",) * 4)]


def test_lane_keeps_its_room_until_it_had_its_turn() -> None:
    lanes = (lane("new", TWO, "aa", up_s=TURN_S - 1),)
    now = at(nodes(2), lanes=lanes, orders=queued(one=5, two=5))
    assert not decide(now).end_lanes
    assert decide(replace(now, lanes=(replace(lanes[0], up_s=TURN_S),))).end_lanes == ["new"]


def test_lanes_are_not_started_for_less_work_than_a_start() -> None:
    orders = {ONE: Orders(20, 0, START_S / 10, 1.0)}
    assert len(decide(at(nodes(8), orders=orders)).start_lanes) == 2
    half, where = Shape(1, 0.5, 0), (Node("a", 2),)
    short, long = (
        decide(at(where, orders={half: Orders(4, 0, seconds)}), ScoringRules(CPU, None, 1e12))
        for seconds in (CPU_START_S / 3, CPU_START_S / 2)
    )
    assert (len(short.start_lanes), len(long.start_lanes)) == (1, 2)


def test_no_more_scorers_are_started_for_less_work_than_a_start_but_where_one_may_never_take_it_up() -> None:
    rules, where = ScoringRules(CPU, None, 1e12), (Node("a", 2),)

    def started(*groups: Group) -> list[tuple[str, int]]:
        return decide(at(where, groups=groups, cells=cells(1, CPU_START_S / 10)), rules).start_groups

    assert started() == [("a", 1)]
    assert started(group("busy", "a", left_s=CPU_START_S / 2)) == []
    assert started(group("idle", "a", busy=0)) == []
    assert started(group("long", "a", left_s=CPU_START_S * 2)) == [("a", 1)]
    assert started(group("overdue", "a", left_s=0.0)) == [("a", 1)]


def test_node_where_a_lane_cannot_start_is_left_out() -> None:
    orders = {ONE: replace(queued(one=3)[ONE], unfit=frozenset("a"))}
    assert {where for _, where in decide(at(nodes(4, 1), orders=orders)).start_lanes} == {("b",)}


# Scorers


def test_node_that_joins_is_used_and_one_that_left_is_given_up() -> None:
    busy = tuple(lane(str(n), ONE, "a") for n in range(2))
    now = at(nodes(2), lanes=busy, orders=queued(one=4))
    assert not decide(now).start_lanes
    assert decide(replace(now, nodes=nodes(2, 2))).start_lanes == [(ONE, ("b",))] * 2
    assert decide(replace(now, nodes=nodes(0, 2)[1:])).start_lanes == [(ONE, ("b",))] * 2
    assert decide(now).trials == 3
    assert decide(replace(now, nodes=nodes(2, 2))).trials == 5


def test_free_gpus_score_what_waits_and_one_scorer_may_take_several() -> None:
    assert decide(at(nodes(4), cells=cells(9))).start_groups == [("a", 1)] * 4
    assert decide(at(nodes(4), cells=cells(2))).start_groups == [("a", 1)] * 2
    pair = ScoringRules(Shape(1, 2, 2), None, 1e12)
    assert decide(at(nodes(3, 2), cells=cells(9)), pair).start_groups == [("b", 1), ("a", 1)]
    assert decide(at(nodes(8), cells=cells(9)), replace(RULES, most=2)).start_groups == [("a", 1)] * 2


def test_scorers_of_a_kind_start_on_that_kind() -> None:
    rules = ScoringRules(Shape(1, 1, 1, "y"), None, 1e12)
    assert decide(at(nodes(2, 2, kinds="xy"), cells=cells(9)), rules).start_groups == [("b", 1)] * 2


def test_one_gpu_trains_until_the_scoring_that_waits_pays_for_the_change_and_back() -> None:
    allocator = Allocator(RULES)
    trains = at(nodes(1), lanes=(lane("lane", ONE, "a"),), orders=queued(one=9))
    assert not allocator.decide(replace(trains, cells=cells(1))).end_lanes
    assert allocator.decide(replace(trains, cells=cells(4))).end_lanes == ["lane"]
    scores = at(nodes(1), groups=(group("group", "a"),), orders=queued(one=9))
    assert not allocator.decide(replace(scores, cells=cells(1))).end_groups
    assert allocator.decide(scores).end_groups == ["group"], "after the cell in hand"


def test_scoring_gets_room_before_the_next_lane_once_it_is_owed_some() -> None:
    """The GPU that is free goes to scoring, and the lane goes on."""
    now = at(nodes(2), lanes=(lane("lane", ONE, "a"),), orders=queued(one=9), cells=cells(9, 1200.0))
    decision = decide(now)
    assert (decision.start_groups, decision.start_lanes) == ([("a", 1)], [])


def test_snapshots_beyond_the_limit_turn_gpus_to_scoring_and_hold_orders() -> None:
    """The lane that keeps pace with scoring stays a while, as it would be back soon."""
    rules = replace(RULES, max_waiting_bytes=50.0)
    allocator = Allocator(rules)
    lanes = tuple(lane(name, ONE, "a", busy=False, up_s=0) for name in "ab")
    now = at(nodes(2), lanes=lanes, orders=queued(one=9), cells=cells(6, 600.0, 10.0))
    decision = allocator.decide(now)
    assert (decision.hold_orders, decision.end_lanes, decision.start_lanes) == (True, ["a"], [])
    waits = (replace(lanes[1], idle_s=START_S / 2),)
    assert allocator.decide(replace(now, lanes=waits)).end_lanes == ["b"]
    assert allocator.decide(replace(now, cells=cells(5, 600.0, 10.0))).hold_orders, "until clearly fewer wait"
    assert not allocator.decide(replace(now, cells=cells(4, 600.0, 10.0))).hold_orders
    assert not Allocator(rules).decide(replace(now, cells=cells(5, 600.0, 10.0))).hold_orders


def test_scorers_give_a_gang_its_node_before_their_cells_run_out() -> None:
    groups = tuple(group(f"{node}{n}", node, left_s=60 * n) for node in "ab" for n in range(4))
    now = at(nodes(4, 4), groups=groups, orders=queued(four=9))
    much, little = (replace(now, cells=cells(count)) for count in (200, 4))
    assert decide(much).end_groups == []
    assert sorted(decide(little).end_groups) == ["a0", "a1", "a2", "a3"]


def test_cpus_are_halved_until_nothing_is_left_to_train() -> None:
    rules = ScoringRules(Shape(1, 1, 0), None, 1e12)
    machine = (Node("a", 4),)
    decision = decide(at(machine, orders=queued(cpu=9), cells=cells(9)), rules)
    assert (decision.start_lanes, decision.start_groups) == ([(CPU, ("a",))] * 2, [("a", 1)] * 2)
    assert decide(at(machine, cells=cells(9)), rules).start_groups == [("a", 1)] * 4


def test_everything_ends_when_nothing_more_will_come() -> None:
    now = at(
        nodes(2), lanes=(lane("lane", ONE, "a", busy=False),), groups=(group("group", "a", busy=0),),
        cells=replace(NOTHING, more=False),
    )  # fmt: skip
    decision = decide(now)
    assert (decision.end_lanes, decision.end_groups) == (["lane"], ["group"])


# The paper's grid


@pytest.fixture(scope="module")
def simulator() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import scheduler

        return scheduler
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("kinds", [("H100",), ("H200", "H100")])
def test_grid_of_the_paper_keeps_64_gpus_busy_and_ends_near_the_bound(simulator: Any, kinds: tuple[str, ...]) -> None:
    found = simulator.simulate(64, kinds)
    assert found.busy >= 0.9
    assert found.ratio <= 1.1
