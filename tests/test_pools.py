"""Where trials meet lanes and scorers, driven without Ray: who gets what, and what the loss of anybody costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from massive_sft.scheduling.cell_queue import CellQueue
from massive_sft.scheduling.lane_pool import RESTARTS, LanePool
from massive_sft.scheduling.nodes import Node, Shape
from massive_sft.scheduling.orders import Message

ONE, TWO = Shape(1, 1.0, 0.0), Shape(2, 1.0, 0.0)
Pool: Any = LanePool.__ray_metadata__.modified_class
Queue: Any = CellQueue.__ray_metadata__.modified_class


def play(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(scenario(), 10)

    return asyncio.run(limited())


async def start(pool: Any, lane: str, node: str, shape: Shape = ONE, number: int = 1, ready: bool = True) -> bool:
    """Start a lane of one worker under this number; return whether it may go on."""
    may: bool = await pool.enter(lane, shape, f"{lane} {number}", 0, node)
    if may and ready:
        await pool.ready(lane, 0)
    return may


async def cluster(orders: int, *nodes: str) -> Any:
    """Return a pool with so many orders queued, on these nodes."""
    pool = Pool(Counter({ONE: orders}))
    await pool.look(nodes, [])
    for number in range(orders):
        await pool.submit(ONE, f"order {number}", f"order {number}".encode())
    return pool


# Lanes that are lost


def test_restarts_of_a_lane_count_from_its_last_success() -> None:
    async def scenario() -> Any:
        pool = await cluster(3, "node")
        for number in range(RESTARTS):
            assert await start(pool, "lane", "node", number=number)
            await pool.next("lane", ONE)
            await pool.tell("lane", Message("event", step=number + 1))
        await pool.tell("lane", Message("failed", "out of memory"))
        given = []
        for number in range(100, 100 + RESTARTS):
            given.append(await start(pool, "lane", "node", number=number))
        assert all(given)
        assert not await start(pool, "lane", "node", number=200)
        return (await pool.state())["refused"]

    assert play(scenario) == {"lane": "its workers were restarted 10 times without getting further"}


def test_lane_that_is_refused_gives_its_order_to_another() -> None:
    async def scenario() -> None:
        pool = await cluster(1, "sick", "healthy")
        await start(pool, "lane", "sick")
        assert await pool.next("lane", ONE) == b"order 0"
        for number in (2, 3):
            assert await start(pool, "lane", "sick", number=number, ready=False)
        assert not await start(pool, "lane", "sick", number=4)
        await start(pool, "other", "healthy")
        assert await pool.next("other", ONE) == b"order 0"

    play(scenario)


# Nodes where nothing starts


def test_sick_node_costs_its_own_lanes_and_never_the_shape() -> None:
    async def scenario() -> Any:
        pool = await cluster(2, "sick", "healthy", "third")
        await start(pool, "good", "healthy")
        assert await pool.next("good", ONE) == b"order 0"
        await pool.tell("good", Message("done"))
        for number in range(2):
            assert await start(pool, "bad", "sick", number=number, ready=False)
        assert not await start(pool, "bad", "sick", number=2)
        state = await pool.state()
        assert (state["queued"][ONE], state["unfit"]) == (1, {ONE: {"sick"}})
        for number in range(3):
            await start(pool, "worse", "third", number=number, ready=False)
        assert (await pool.state())["unfit"] == {ONE: {"sick", "third"}}
        assert await pool.next("good", ONE) == b"order 1", "the shape has worked, so it is the nodes"
        return (await pool.state())["refused"]

    assert set(play(scenario)) == {"bad", "worse"}


def test_node_whose_disk_is_full_costs_its_own_lanes_and_no_order() -> None:
    async def scenario() -> Any:
        pool = await cluster(1, "full", "roomy")
        await start(pool, "lane", "full")
        assert await pool.next("lane", ONE) == b"order 0"
        await pool.give_up("lane", ONE, "no space left")
        assert await pool.next("lane", ONE) is None
        state = await pool.state()
        assert (state["queued"][ONE], state["unfit"]) == (1, {ONE: {"full"}})
        assert not await start(pool, "lane", "full", number=1), "a gang's workers are started again once more"
        await pool.lost("lane", ONE, "no space left")
        await start(pool, "other", "roomy")
        assert await pool.next("other", ONE) == b"order 0"
        await pool.give_up("other", ONE, "no space left")
        return state["refused"], await pool.messages("order 0")

    refused, (message,) = play(scenario)
    assert refused == {"lane": "no space left"}
    assert (message.kind, message.content) == ("failed", "no space left"), "where it is every node"


def test_shape_that_fails_on_two_nodes_and_never_worked_is_given_up() -> None:
    async def scenario() -> list[Message]:
        pool = await cluster(1, "first", "second", "third")
        for node in ("first", "second"):
            for number in range(3):
                await start(pool, node, node, number=number, ready=False)
        return await pool.messages("order 0")

    (message,) = play(scenario)
    assert (message.kind, message.content) == ("failed", "its workers died 2 times before they could take an order")


def test_shape_is_given_up_where_no_node_is_left_for_it() -> None:
    async def scenario() -> list[Message]:
        pool = await cluster(1, "only")
        for number in range(3):
            await start(pool, "lane", "only", number=number, ready=False)
        return await pool.messages("order 0")

    assert play(scenario)[0].kind == "failed"


def test_successful_start_forgives_a_node_its_failures() -> None:
    async def scenario() -> None:
        pool = await cluster(1, "node", "other")
        for number in range(1, 8):
            assert await start(pool, "lane", "node", number=number, ready=number % 2 == 0)
        assert (await pool.state())["unfit"] == {}

    play(scenario)


def test_nodes_that_go_while_lanes_start_there_prove_nothing() -> None:
    async def scenario() -> dict[str, Any]:
        pool = await cluster(1, "a", "b", "c")
        for number, node in enumerate("ab"):
            await start(pool, node, node, number=number, ready=False)
            await pool.look("c", [])
            await pool.lost(node, ONE, "its node is gone")
            await start(pool, f"{node}2", node, number=number, ready=False)
            await pool.lost(f"{node}2", ONE, "its node is gone")
        state: dict[str, Any] = await pool.state()
        return state

    state = play(scenario)
    assert (state["queued"][ONE], state["unfit"]) == (1, {})


def test_workers_of_one_node_that_do_not_import_leave_the_others_free_of_blame() -> None:
    async def scenario() -> Any:
        pool = Pool(Counter({TWO: 1}))
        await pool.look(["sick", "healthy"], [])
        for number in range(3):
            for rank, node in enumerate(("healthy", "sick")):
                await pool.enter("lane", TWO, f"group {number}", rank, node)
            await pool.ready("lane", 0)
        return (await pool.state())["unfit"]

    assert play(scenario) == {TWO: {"sick"}}


def test_node_that_starts_no_process_of_a_lane_costs_its_own_lanes() -> None:
    """Their workers never say that they are up, so it is the run that tells the pool."""

    async def scenario() -> Any:
        pool = await cluster(1, "sick", "healthy")
        await pool.lost("first", ONE, "its processes cannot be started", ["sick"])
        state = await pool.state()
        assert (state["queued"][ONE], state["unfit"]) == (1, {ONE: {"sick"}})
        await pool.lost("second", ONE, "its processes cannot be started", ["healthy"])
        return await pool.messages("order 0")

    (message,) = play(scenario)
    assert (message.kind, message.content) == (
        "failed",
        "its lanes cannot be started: its processes cannot be started",
    )


def test_shape_that_fails_on_every_node_with_room_for_it_is_given_up_whatever_other_nodes_there_are() -> None:
    shape = Shape(1, 1.0, 1.0)

    async def scenario() -> Any:
        pool = Pool(Counter({shape: 1}))
        await pool.look(["gpu", "cpu"], [], [Node("gpu", 8, 1, "H100"), Node("cpu", 64)])
        await pool.submit(shape, "order", b"")
        for number in range(2):
            assert (await pool.state())["queued"][shape] == 1
            await start(pool, f"lane {number}", "gpu", shape, number, ready=False)
            await pool.lost(f"lane {number}", shape, "its workers died")
        return await pool.messages("order")

    (message,) = play(scenario)
    assert (message.kind, message.content) == ("failed", "its lanes cannot be started: its workers died")


def test_lane_that_was_up_before_says_nothing_against_its_node_when_it_is_not_started_again() -> None:
    """Ray counts such starts over a lane's life: three in a week are no sick node. The next lane tells."""

    async def scenario() -> Any:
        pool = await cluster(1, "only")
        await start(pool, "lane", "only")
        await pool.lost("lane", ONE, "its processes cannot be started", ["only"])
        return await pool.state()

    state = play(scenario)
    assert (state["queued"][ONE], state["unfit"]) == (1, {})


def test_of_the_nodes_of_a_gang_that_is_not_started_those_count_where_nobody_was_up() -> None:
    async def scenario() -> Any:
        pool = Pool(Counter({ONE: 1, TWO: 1}))
        await pool.look(["sick", "healthy", "third", "fourth"], [])
        await start(pool, "lane", "healthy")
        await pool.submit(TWO, "gang", b"")
        await pool.lost("first", TWO, "its processes cannot be started", ["healthy", "sick"])
        known = (await pool.state())["unfit"][TWO]
        await pool.lost("second", TWO, "its processes cannot be started", ["third", "fourth"])
        return known, (await pool.state())["queued"][TWO]

    assert play(scenario) == ({"sick"}, 0), "where none ever worked, two places are enough"


# Nodes that go


def test_lane_on_a_node_that_is_about_to_go_stops_and_its_order_is_queued_again_free_of_charge() -> None:
    async def scenario() -> None:
        pool = await cluster(2, "spot", "other")
        for time in range(5):  # more than the tries of an order
            lane = f"lane {time}"
            await pool.look(["spot", "other"], [])
            await start(pool, lane, "spot")
            assert await pool.next(lane, ONE) == b"order 0", "it stands in front"
            told = asyncio.create_task(pool.told_to_stop(lane))
            await asyncio.sleep(0)
            assert not told.done()
            await pool.look(["other"], ["spot"])
            await told
            await pool.tell(lane, Message("stopped"))
            assert await pool.next(lane, ONE) is None, "it ends"
            await pool.ended(lane)
            late = f"late {time}"
            await start(pool, late, "spot")
            assert await pool.next(late, ONE) is None, "it came up when the node was about to go"
        await start(pool, "last", "other")
        assert await pool.next("last", ONE) == b"order 0"
        await pool.tell("last", Message("done"))
        assert [message.kind for message in await pool.messages("order 0")] == ["done"]

    play(scenario)


def test_look_at_the_same_nodes_is_no_progress() -> None:
    """The run looks twice a second: were it progress, no watchdog would ever speak."""

    async def scenario() -> list[int]:
        pool, progress = await cluster(1, "node"), list[int]()
        for nodes in (["node"], ["node"], ["node", "other"], ["node", "other"]):
            await pool.look(nodes, [])
            progress.append((await pool.state())["progress"])
        return progress

    first, second, third, fourth = play(scenario)
    assert first == second < third == fourth


def test_tries_on_nodes_that_are_gone_do_not_count() -> None:
    async def scenario() -> None:
        pool = await cluster(1, "a", "b", "c", "d", "e")
        for lost in range(4):
            lane = "abcd"[lost]
            await start(pool, lane, lane)
            assert await pool.next(lane, ONE) == b"order 0"
            await pool.look("abcde"[lost + 1 :], [])
            await pool.lost(lane, ONE, "its node is gone")
        await start(pool, "e", "e")
        assert await pool.next("e", ONE) == b"order 0"

    play(scenario)


# Trials that die


def test_order_of_a_trial_that_began_anew_is_trained_once_and_heard_from_one_lane() -> None:
    async def scenario() -> list[Message]:
        pool = await cluster(1, "node")
        assert await pool.next("lane", ONE) == b"order 0"
        told = asyncio.create_task(pool.told_to_stop("lane"))
        dead = asyncio.create_task(pool.messages("order 0"))
        await asyncio.sleep(0)
        await pool.submit(ONE, "order 0", b"under a new lease")
        await told
        assert await dead == []
        await pool.tell("lane", Message("failed", "LeaseLost: held now by another"))
        assert (await pool.state())["expected"] == {ONE: 0}
        assert await pool.next("other", ONE) == b"under a new lease"
        await pool.tell("other", Message("done"))
        messages: list[Message] = await pool.messages("order 0")
        return messages

    assert [message.kind for message in play(scenario)] == ["done"]


def test_trial_that_is_lost_for_good_keeps_no_lane_waiting() -> None:
    async def scenario() -> None:
        pool = Pool(Counter({ONE: 2}))
        await pool.submit(ONE, "begun", b"")
        waiting = asyncio.create_task(pool.next("lane", ONE))
        assert await waiting == b""
        await pool.skip(ONE, "begun")
        await pool.skip(ONE, "begun")
        await pool.skip(ONE, "never begun")
        await pool.tell("lane", Message("stopped"))
        assert await pool.next("lane", ONE) is None
        assert (await pool.state())["expected"] == {ONE: 0}

    play(scenario)


# Order


def test_more_of_a_trajectory_is_another_order_and_no_lane_waits_for_a_third() -> None:
    async def scenario() -> list[bytes | None]:
        pool = Pool(Counter(), grows=True)
        await pool.look(["node"], [])
        await start(pool, "lane", "node")
        given = []
        for epoch in (b"until 1", b"until 2"):
            await pool.assign("run", epoch, ONE)
            await pool.submit(ONE, "run", epoch)
            given.append(await pool.next("lane", ONE))
            await pool.tell("lane", Message("done"))
        await pool.close()
        return [*given, await pool.next("lane", ONE)]

    assert play(scenario) == [b"until 1", b"until 2", None]


def test_orders_that_are_held_back_stay_in_their_queue() -> None:
    async def scenario() -> None:
        pool = await cluster(1, "node")
        await pool.hold(True)
        waiting = asyncio.create_task(pool.next("lane", ONE))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        await pool.hold(False)
        assert await waiting == b"order 0"

    play(scenario)


def test_orders_and_cells_of_higher_priority_are_given_out_first_and_keep_their_place() -> None:
    async def scenario() -> tuple[list[bytes], list[str]]:
        pool = Pool(Counter({ONE: 3}))
        for name, priority in (("first", 0.0), ("second", 0.0), ("promoted", 1.0)):
            await pool.submit(ONE, name, name.encode(), priority)
        given = [await pool.next("lost", ONE)]
        await pool.lost("lost", ONE, "killed")
        given += [await pool.next(f"lane {number}", ONE) for number in range(3)]

        queue = Queue()
        await queue.put([("first", b""), ("second", b"")])
        await queue.put([("promoted", b"")], priority=1.0)
        reader = await queue.again("group")
        cells = [await queue.take("group", reader, 3)]
        reader = await queue.again("group")
        cells += [await queue.take("group", reader, 3) for _ in range(3)]
        return given, [cell for cell, _ in cells]

    order = ["promoted", "promoted", "first", "second"]
    assert play(scenario) == ([name.encode() for name in order], order)


def test_scores_reach_the_trial_that_waits_for_them() -> None:
    async def scenario() -> list[bytes]:
        queue = Queue(keeps_records=True)
        waiting = asyncio.create_task(queue.outcomes(["a", "b"]))
        await queue.acknowledge("b", b"score of b")
        await asyncio.sleep(0)
        assert not waiting.done()
        await queue.acknowledge("a", b"score of a")
        return await waiting

    assert play(scenario) == [b"score of a", b"score of b"]


def test_groups_of_scorers_have_cells_of_their_own() -> None:
    async def scenario() -> None:
        queue = Queue()
        await queue.put([("a", b""), ("b", b""), ("c", b"")])
        first, second = await queue.again("first"), await queue.again("second")
        assert (await queue.take("first", first), await queue.take("second", second)) == (("a", b""), ("b", b""))
        second = await queue.again("second")
        assert set((await queue.state())["out"]) == {"a"}
        await queue.leave(["first"])
        assert await queue.take("first", first) is None
        assert await queue.take("second", second) == ("b", b"")
        for _ in range(2):
            assert await queue.enter("first", 1)
        assert not await queue.enter("first", 1)
        assert await queue.enter("second", 1)

    play(scenario)


def test_group_goes_on_with_cells_of_its_base_but_for_longer_ones_and_those_of_higher_priority() -> None:
    async def scenario() -> list[str]:
        seconds = {"first": 90.0, "other": 80.0, "same": 70.0, "long": 1000.0, "more": 60.0, "last": 1.0, "urgent": 1.0}
        bases = dict.fromkeys(seconds, "B") | dict.fromkeys(("first", "same", "more", "last"), "A")
        queue = Queue(False, {cell: (value, 0.0) for cell, value in seconds.items()}, bases)
        await queue.put([(cell, b"") for cell in ("first", "other", "same")])
        reader, given = await queue.again("group"), list[str]()
        for more in ([], [], ["long", "more", "last"], ["urgent"], [], [], []):
            await queue.put([(cell, b"") for cell in more], priority=float(more == ["urgent"]))
            given.append((await queue.take("group", reader))[0])
            await queue.acknowledge(given[-1])
        return given

    # After "same" the long one is due, then what has priority; then its base's, though "more" is shorter than "other".
    assert play(scenario) == ["first", "same", "long", "urgent", "other", "more", "last"]


def test_what_a_group_was_told_is_next_is_left_to_it_while_others_wait() -> None:
    async def scenario() -> list[Any]:
        queue = Queue()
        early = asyncio.create_task(queue.upcoming("a"))
        await asyncio.sleep(0)
        assert not early.done()
        await queue.put([(cell, cell.encode()) for cell in ("one", "two", "three")])
        readers = {group: await queue.again(group) for group in "ab"}
        told = [await early, await queue.upcoming("b")]
        given = [(await queue.take(group, readers[group], 9))[0] for group in "bba"]
        await queue.leave(["a"])
        return [*told, *given, await queue.upcoming("a")]

    assert play(scenario) == [b"one", b"two", "two", "three", "one", None]


# Scorers that die


async def scoring(*cells: str) -> Any:
    """Return a queue whose group "a" has begun these cells, each by a scorer of its own."""
    queue = Queue()
    await queue.put([(cell, cell.encode()) for cell in cells])
    await begin(queue, "a", *cells)
    return queue


async def begin(queue: Any, group: str, *cells: str) -> None:
    reader = await queue.again(group)
    for _ in cells:
        cell, _ = await queue.take(group, reader, len(cells))
        await queue.begin(cell, f"scorer of {cell}")


def test_cell_that_costs_its_scorer_again_and_again_is_told_from_those_that_lose_theirs_with_it() -> None:
    async def scenario() -> dict[str, int]:
        queue = await scoring("deadly", "innocent")
        for turn in "bcd":
            await queue.died(chr(ord(turn) - 1), "scorer of deadly")
            for cell in ("deadly", "innocent"):
                await queue.release(cell)
            await begin(queue, turn, "deadly", "innocent")
        await queue.died("d", "scorer of innocent")
        state: dict[str, int] = (await queue.state())["lost"]
        return state

    assert play(scenario) == {"deadly": 3, "innocent": 1}


def test_scorer_of_which_nobody_knows_what_it_had_counts_for_all_that_were_begun() -> None:
    async def scenario() -> Any:
        queue = await scoring("begun")
        await queue.put([("taken", b"")])
        await queue.take("a", 1, 2)
        await queue.died("a")
        return await queue.state()

    state = play(scenario)
    assert (state["lost"], state["waiting"]) == ({"begun": 1}, 1)


def test_scorers_that_go_with_their_node_are_no_deaths() -> None:
    async def scenario() -> Any:
        queue = await scoring("one")
        await queue.lost("a")
        return await queue.state()

    state = play(scenario)
    assert (state["lost"], state["out"], state["begun"]) == ({"one": 0}, {"one": ""}, set())


def test_cell_of_a_lost_scorer_waits_until_it_is_released_or_something_became_of_it() -> None:
    async def scenario() -> None:
        queue = await scoring("one", "other")
        await queue.died("a", "scorer of one")
        waiting = asyncio.create_task(queue.take("b", await queue.again("b")))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done(), "its scorer may still hold it in the ledger"
        await queue.release("one")
        assert await waiting == ("one", b"one")
        await queue.acknowledge("one")
        await queue.acknowledge("other")
        await queue.release("other")
        state = await queue.state()
        assert not (state["waiting"] or state["out"])

    play(scenario)


def test_calls_of_a_thousand_lanes_wait_at_once_and_those_of_dead_workers_do_not_stay() -> None:
    async def scenario() -> None:
        pool = Pool(Counter({ONE: 3000}))
        for number in range(1000):
            await pool.submit(ONE, f"{number}", b"")
            await pool.next(f"lane {number}", ONE)
        calls = [asyncio.create_task(pool.told_to_stop(f"lane {number}")) for number in range(1000)]
        again = [asyncio.create_task(pool.told_to_stop(f"lane {number}")) for number in range(1000)]
        await asyncio.gather(*calls)
        assert not any(call.done() for call in again)
        await pool.stop()
        await asyncio.gather(*again)

    play(scenario)
