"""A run that is cancelled ends at once where it can go on: by Ctrl-C, SIGTERM, a closed terminal, and elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from commands import end, run_command, start, start_session
from processes import Process, adopt_orphans, descendants
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import ExitCode
from massive_sft.core.imports import heavy_imports
from massive_sft.core.stop import KILL_MESSAGE, StopSignal, redeliver_lost_interrupts
from massive_sft.ledger.lease import read_lease
from massive_sft.ledger.record import Status
from massive_sft.ledger.runs import find_live_runs, register_run
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.inline import run_inline
from massive_sft.scheduling.cell_queue import CellQueue
from massive_sft.scheduling.lane_pool import LanePool
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.sweep.load import load_sweep

pytestmark = pytest.mark.timeout(300)

GO_ON = "run the same command to go on"
# Within which nobody is left: seconds on an idle machine, but the agents of a Ray that was killed look for their raylet
# now and then, and write down what became of it before they end.
LEFT_S = 60
STEPS = 240  # of a training: long enough to be met in it


def long_sweep(folder: Path) -> Path:
    """Write a sweep of one training that takes a while, and of scores that do."""
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 4},
        "full": {"method": "full", "lr": 1e-3},
    }
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full"}
    block |= {"schedule": "constant", "horizon": 4, "snapshots": [1, 2, 3, 4]}
    return small_sweep(folder, mixtures={"one": {"each": "facts", "samples": 240}}, settings=settings, blocks=[block])


def plan_of(path: Path) -> Plan:
    return make_plan(load_sweep(path))


def results(path: Path) -> dict[str, tuple[object, object]]:
    ledger = Ledger.open(plan_of(path).root, create=False)
    return {record.cell: (record.scores, record.measures) for record in ledger.records()}


class Runner:
    """`massive-sft run` as a user starts it, in a session of its own."""

    def __init__(self, path: Path, *options: str):
        self.path = path
        self.log = path.parent / f"run-{time.monotonic_ns()}.log"
        self.log.touch()
        self.process = start_session(run_command, ("run", *options, str(path)), self.log)
        self.before = {process.pid for process in descendants()} - {self.process.pid}

    def until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        """Wait for something to happen while the run goes on."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"the run ended before:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.log.read_text()}"
            time.sleep(0.01)

    def press(self, number: int = signal.SIGINT) -> None:
        """Send a signal as a terminal does: to everybody in the foreground."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)

    def ended(self, seconds: float, expected: ExitCode = ExitCode.INTERRUPTED) -> str:
        """Wait for the end as a cancelled run ends, and that nobody is left; return what was printed."""
        code = end(self.process, seconds)
        text = self.log.read_text()
        assert (code, "Traceback" in text) == (expected, False), text
        assert GO_ON in text
        deadline = time.monotonic() + LEFT_S
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, [process.title for process in left]
        return text

    def left(self) -> list[Process]:
        return [process for process in descendants() if process.pid not in self.before]


def trains(path: Path) -> bool:
    """Whether somebody trains, has taken some steps and is not at the end."""
    for home in (plan_root(path) / "trajectories").glob("*"):
        seen = read_lease(Folder(home / "lease"))
        losses = home / "attempts" / str(seen.number if seen else 0) / "losses.jsonl"
        if seen is not None and not seen.released and losses.exists():
            return 3 <= len(losses.read_text().splitlines()) <= STEPS - 10
    return False


def scores(path: Path) -> bool:
    """Whether a scorer has a cell and has answered a shard of it."""
    return any(
        not seen.released
        and any(folder.parent.glob("responses/*/*/*.gz"))
        and not any((plan_root(path) / "records").glob(f"*/{folder.parent.name}.*"))
        for folder in (plan_root(path) / "cells").glob("*/lease")
        if (seen := read_lease(Folder(folder))) is not None
    )


def plan_root(path: Path) -> Path:
    return path.parent / "ledger"


def assert_true_statuses(path: Path) -> None:
    """Nothing failed, nobody seems to work, nobody holds a lease, and no run is registered."""
    counts = plan_of(path).statuses
    assert set(counts) <= {Status.WAITING, Status.COMPLETE}, counts
    held = [
        file
        for file in plan_root(path).rglob("lease")
        if (seen := read_lease(Folder(file))) is not None and not seen.released
    ]
    assert not held
    assert not find_live_runs(Folder(plan_root(path) / "sweeps" / "small"))


@pytest.fixture(scope="module", autouse=True)
def _adoption() -> None:
    adopt_orphans()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, object]]:
    """The results of the long sweep that nobody cancelled."""
    path = long_sweep(tmp_path_factory.mktemp("undisturbed"))
    run_inline(plan_of(path), lambda _: None)
    return results(path)


@pytest.mark.slow
def test_cancelled_run_goes_on_and_ends_with_the_results_of_one_that_was_not(
    undisturbed: dict[str, tuple[object, object]], tmp_path: Path
) -> None:
    path = long_sweep(tmp_path)

    run = Runner(path, "--ray")
    run.until(lambda: "lanes of" in run.log.read_text())
    run.press()
    time.sleep(0.1)
    run.press()
    run.ended(5)
    assert Status.FAILED not in plan_of(path).statuses

    run = Runner(path, "--ray")
    run.until(lambda: trains(path))
    run.press()
    text = run.ended(40)
    assert "Ctrl-C: ending after the step or shard in hand" in text
    assert list((plan_root(path) / "trajectories").glob("*/resume/latest.json")), "it left no checkpoint"
    assert_true_statuses(path)

    run = Runner(path, "--ray")
    run.until(lambda: trains(path) or scores(path))  # with enough left for the wish to arrive on a busy machine
    code, text = cancel(path)
    assert (code, "has ended" in text) == (0, True), text
    assert "massive-sft cancel: ending" in run.ended(10)
    assert_true_statuses(path)

    run_inline(plan_of(path), lambda _: None)
    assert results(path) == undisturbed


def lose_the_terminal(path: Path, hang_up: bool) -> int:
    """Run a sweep in this process's stead on a terminal that is gone once it trains; return how the run ended."""
    master, slave = os.openpty()
    process = start("run", path, "--inline", out=Path(os.ttyname(slave)))
    while not trains(path):
        assert process.is_alive()
        if select.select([master], [], [], 0.01)[0]:
            os.read(master, 4096)
    os.close(slave)
    os.close(master)
    if hang_up:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGHUP)
    return end(process)


@pytest.mark.slow
def test_inline_run_is_cancelled_alike_also_by_a_closed_terminal_and_a_lost_one_costs_only_lines(
    undisturbed: dict[str, tuple[object, object]], tmp_path: Path
) -> None:
    path = long_sweep(tmp_path)
    for number, code in ((signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TRY_AGAIN)):
        run = Runner(path, "--inline")
        run.until(lambda: trains(path))
        run.press(number)
        run.ended(20, code)
        assert_true_statuses(path)
    assert lose_the_terminal(path, hang_up=True) == 130
    assert list((plan_root(path) / "trajectories").glob("*/resume/latest.json")), "it left no checkpoint"
    assert_true_statuses(path)
    assert lose_the_terminal(path, hang_up=False) == 0
    assert results(path) == undisturbed


def test_run_under_nohup_heeds_no_closed_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with (
            register_run(Folder(tmp_path), "small", "here:1") as run,
            StopSignal().handle_signals(run.end_requested, print),
        ):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_verb_whose_output_is_closed_does_its_work(sweep: Path, closed: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "massive_sft", "cancel", str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = "" if closed.startswith(">") else "nothing to cancel: no run of this sweep goes on\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")


# The verb, without a run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return small_sweep(tmp_path)


def cancel(path: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["cancel", str(path), *options])
    return done.exit_code, done.output


def test_nothing_to_cancel_is_said(sweep: Path) -> None:
    assert cancel(sweep) == (0, "nothing to cancel: no run of this sweep goes on\n")
    code, text = cancel(sweep, "--json")
    assert (code, json.loads(text)) == (0, {"sweep": "small", "runs": []})


def test_run_that_does_not_end_in_time_is_said_and_stays_asked(sweep: Path, tmp_path: Path) -> None:
    with register_run(Folder(tmp_path / "ledger" / "sweeps"), "small", "elsewhere:7") as run:
        code, text = cancel(sweep, "--timeout", "0.1")
        assert (code, "elsewhere:7" in text, "has not ended within 0.1 s" in text) == (1, True, True)
        assert run.end_requested()
    assert cancel(sweep)[1].startswith("nothing to cancel")


def test_killed_run_is_not_cancelled_and_does_not_stop_the_next_one(sweep: Path, tmp_path: Path) -> None:
    sweeps = Folder(tmp_path / "ledger" / "sweeps")
    folder = sweeps.local("small")
    code = (
        "import os, sys, pathlib; from massive_sft.ledger.runs import *; from massive_sft.ledger.storage import *\n"
        "with register_run(Folder(pathlib.Path(sys.argv[1])), 'small', 'killed:1') as run:\n"
        "    run.request_end('me'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(sweeps)]).returncode == 9
    assert len(list((folder / "runs").iterdir())) == 1
    assert cancel(sweep)[1].startswith("nothing to cancel")
    with register_run(sweeps, "small", "next:1") as run:
        assert [each.name for each in find_live_runs(sweeps.at("small"))] == ["next:1"]
        assert not run.end_requested()
    assert not list((folder / "runs").iterdir())


# The pools of a run that ends, without Ray

ONE = Shape(1, 1.0, 0.0)
Lanes = LanePool.__ray_metadata__.modified_class
Cells = CellQueue.__ray_metadata__.modified_class


def test_ending_pool_gives_nothing_out_and_says_so_to_who_waits() -> None:
    async def scenario() -> None:
        pool = Lanes(Counter({ONE: 3}))
        for trial in ("held", "starting"):
            await pool.assign(trial, b"")
        await pool.take_up("held")
        await pool.submit(ONE, "held", b"held")
        assert await pool.next("lane", ONE) == b"held"
        state = await pool.state()
        assert (state["ready"], state["late"]) == ({"lane"}, {"starting"})
        await pool.submit(ONE, "queued", b"")
        stopped = asyncio.create_task(pool.told_to_stop("lane"))
        await asyncio.sleep(0)
        assert not stopped.done()
        await pool.stop()
        await stopped
        assert await pool.messages("queued") == [Message("stopped")]
        await pool.submit(ONE, "late", b"")
        assert await pool.messages("late") == [Message("stopped")]
        assert not await pool.begin("trial")
        assert await pool.next("lane", ONE) is None, "its workers were restarted while it ended"
        assert await pool.messages("held") == [Message("stopped")]

    asyncio.run(scenario())


def test_order_of_a_lost_lane_goes_to_another_and_counts_tries_without_progress() -> None:
    """A training whose checkpoint lay before its last step gets further without a step that is new."""

    async def scenario() -> list[Message]:
        pool = Lanes(Counter({ONE: 1}))
        await pool.submit(ONE, "order", b"data")
        told = (("a", 5, 0), ("b", 6, 4), ("c", 6, 4), ("d", 6, 5), ("e", 6, 5), ("f", 3, 2))
        for lane, step, checkpoint in told:
            assert await pool.next(lane, ONE) == b"data", lane
            await pool.tell(lane, Message("event", step=step))
            await pool.tell(lane, Message("event", checkpoint=checkpoint))
            await pool.lost(lane, ONE, "gone")
        return await pool.messages("order")

    messages = asyncio.run(scenario())
    assert [message.kind for message in messages] == ["event"] * 12 + ["failed"]


def test_ending_queue_gives_no_cell_out() -> None:
    async def scenario() -> None:
        queue = Cells()
        await queue.put([("a", b""), ("b", b"")])
        reader = await queue.again("group")
        assert await queue.take("group", reader) == ("a", b"")
        assert await queue.begin("a")
        await queue.stop()
        assert await queue.take("group", reader) is None
        assert not await queue.begin("b")
        assert (await queue.state())["begun"] == {"a"}
        await queue.end("a")
        assert not (await queue.state())["begun"]

    asyncio.run(scenario())


def test_interrupt_that_meets_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does in the imports of a run's start, which run thousands of them."""
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    redeliver_lost_interrupts()

    class Finalized:
        def __init__(self, error: type[BaseException]):
            self.error = error

        def __del__(self) -> None:
            raise self.error

    with pytest.raises(KeyboardInterrupt):
        Finalized(KeyboardInterrupt)
        time.sleep(5)
    Finalized(KeyError)
    assert told == [KeyError]


def test_interrupt_that_an_import_swallows_is_not_lost() -> None:
    before, went_on = signal.signal(signal.SIGINT, signal.default_int_handler), False
    try:
        with pytest.raises(KeyboardInterrupt), heavy_imports():
            with suppress(BaseException):  # as of a module that tries another one
                signal.raise_signal(signal.SIGINT)
            went_on = True
        assert went_on and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), heavy_imports():
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it is raised at once where nothing swallows it")
        with pytest.raises(KeyboardInterrupt), heavy_imports():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:  # as Python does of one in a ``__set_name__``
                raise RuntimeError from error
    finally:
        signal.signal(signal.SIGINT, before)


def test_first_interrupt_ends_at_once_what_only_starts() -> None:
    code = """
import os, signal
from massive_sft.core.stop import StopSignal

stop = StopSignal()
with stop.handle_signals(lambda: False, lambda _: None):
    with stop.nothing_in_hand():
        pass
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on", flush=True)
stop = StopSignal()
with stop.handle_signals(lambda: False, lambda _: None), stop.nothing_in_hand():
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("goes on\n", KILL_MESSAGE, ExitCode.INTERRUPTED)
