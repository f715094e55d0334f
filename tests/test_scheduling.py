"""A sweep on a real local Ray: everything finishes, whatever the shapes, and gives what an inline run gives."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapter_sweep
import pytest
import ray
from commands import call, forked_workers
from judge_server import Answer, JudgeServer, judge_server, rating
from processes import descendants
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.util.placement_group import placement_group_table
from ruamel.yaml import YAML
from small_sweep import one_lora, one_training, small_sweep

from massive_sft.core.errors import ClusterLost, ExitCode, Interrupted
from massive_sft.core.stop import StopSignal
from massive_sft.cost.disk import parse_size
from massive_sft.ledger.lease import Lease, LeaseState, LeaseWatch, read_lease
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.storage import Folder, Storage
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, RunPlan, make_plan
from massive_sft.running import trial
from massive_sft.running.events import (
    AnswersWritten,
    BenchmarkScored,
    CellRecorded,
    CellSkipped,
    RunEvent,
    ScoringStarted,
    TrainingEnded,
    TrainingProgressed,
    TrainingStarted,
    ignore,
)
from massive_sft.running.inline import run_inline
from massive_sft.running.outcome import remove_snapshot
from massive_sft.running.trial import Order, make_record_writer, train_run
from massive_sft.scheduling import run_on_ray as run_on_ray_module
from massive_sft.scheduling import scorers
from massive_sft.scheduling.cell_queue import CellQueue
from massive_sft.scheduling.claims import Claims
from massive_sft.scheduling.judges import Judges, JudgesLost
from massive_sft.scheduling.lane_pool import LanePool
from massive_sft.scheduling.lanes import Lanes, _Lane
from massive_sft.scheduling.nodes import Shape
from massive_sft.scheduling.orders import Message
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.scheduling.trials import LaneFailed, ask
from massive_sft.scheduling.watchdog import Limits, Stuck
from massive_sft.sweep.load import load_sweep
from massive_sft.training.events import StepDone

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray of two CPUs, shared by the tests of this module."""
    with forked_workers():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def run(path: Path, **keywords: Any) -> tuple[list[RunEvent], list[str]]:
    """Run a sweep file on Ray; return what happened and what was said."""
    happened: list[RunEvent] = []
    said: list[str] = []
    run_on_ray(make_plan(load_sweep(path)), happened.append, said.append, **keywords)
    return happened, said


def records(folder: Path) -> dict[str, Record]:
    found = Ledger.open(folder / "ledger", create=False).records()
    return {f"{record.coordinates['setting']}-{record.coordinates['epoch']}": record for record in found}


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    """A judge on this machine."""
    with judge_server() as server:
        yield server


def judged_sweep(folder: Path, judge: JudgeServer, **changes: Any) -> Path:
    """Write the small sweep, of which a conversation is judged too."""
    question = {"question_id": 1, "category": "writing", "turns": ["Who?", "Why?"]}
    (folder / "questions.jsonl").write_text(json.dumps(question))
    path = small_sweep(folder, **changes)
    file = YAML(typ="safe").load(path)
    file["evaluation"]["judging"] = {
        "judges": [{"name": "judge-1", "endpoint": judge.url}],
        "benchmarks": [{"kind": "mt_bench", "questions": "questions.jsonl", "max_tokens": 8}],
    }
    YAML(typ="safe").dump(file, path)
    return path


@pytest.fixture(scope="module")
def inline(judge: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inline")
    run_inline(make_plan(load_sweep(judged_sweep(folder, judge))), lambda _: None)
    return folder


def test_run_on_ray_gives_what_an_inline_run_gives(
    cluster: None, inline: Path, judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the process that asks the judge, which is no scorer, is killed once: what was asked is not asked again."""
    shutil.copytree(inline / "world", tmp_path / "world")
    calls, killed, before = list[Any](), list[int](), len(judge.bodies)

    def answer(number: int, body: dict[str, Any]) -> Answer:
        calls.append(body["messages"])
        if number == before + 3:
            killed.extend(process.pid for process in descendants() if "JudgingActor" in process.title)
            os.kill(killed[0], signal.SIGKILL)
        return rating(body)

    monkeypatch.setattr(judge, "answer", answer)
    happened, _ = run(judged_sweep(tmp_path, judge))
    distinct = len(set(map(str, calls)))
    assert len(killed) == 1 and distinct >= 4 and len(calls) <= distinct + 2, "two turns of a cell at a time"
    assert sum(isinstance(event, CellRecorded) for event in happened) == 5
    assert len({event.cell.id for event in happened if isinstance(event, ScoringStarted)}) == 5
    assert sum(isinstance(event, BenchmarkScored) for event in happened) == 15  # three each
    expected, found = records(inline), records(tmp_path)
    assert found.keys() == expected.keys()
    for name, record in found.items():
        assert record.status is Status.COMPLETE, (name, record.error)
        assert record.scores == expected[name].scores
        assert record.measures == expected[name].measures
    assert not list((tmp_path / "ledger" / "trajectories").rglob("model.safetensors")), "retention holds here too"
    started = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    ours = {"LanePool", "CellQueue", "Relay", "Trial"}
    assert {name for name in started if name.startswith(("Train", "Sync", "Placement", "Dataset"))} == set(), (
        "on the head, by lane"
    )
    assert {"RayTrainWorker", "JudgingActor", *ours} <= started


def test_adapters_at_once_are_one_order_and_have_the_records_that_each_has_alone(cluster: None, tmp_path: Path) -> None:
    run_inline(make_plan(load_sweep(adapter_sweep.adapter_sweep(tmp_path / "alone", 1))), lambda _: None)
    happened, said = run(adapter_sweep.adapter_sweep(tmp_path / "together", 3))
    taken = [each.event.step for each in happened if is_step(each)]
    assert taken == sorted(taken) and len(taken) == 18
    assert sum(" starts" in line for line in said) == 1, said
    adapter_sweep.assert_same_results(*(adapter_sweep.records(tmp_path / name) for name in ("together", "alone")))


def is_step(event: RunEvent) -> bool:
    return isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone)


def test_what_is_trained_is_scored_without_a_lane(
    cluster: None, inline: Path, judge: JudgeServer, tmp_path: Path
) -> None:
    shutil.copytree(inline / "world", tmp_path / "world")
    shutil.copytree(inline / "ledger", tmp_path / "ledger")
    expected, path = records(inline), judged_sweep(tmp_path, judge)
    for cell in make_plan(load_sweep(path)).cells:
        if cell.cell.coordinates.method != "full":  # whose snapshots are removed
            shutil.rmtree(tmp_path / "ledger" / "cells" / cell.cell.id)
            next((tmp_path / "ledger" / "records").glob(f"*/{cell.cell.id}.*")).unlink()
    happened, said = run(path)
    assert said == ["nothing is left to train; scorers have 1 CPU each"]
    assert not any(isinstance(event, TrainingStarted) for event in happened)
    assert sum(isinstance(event, CellRecorded) for event in happened) == 3
    found = records(tmp_path)
    assert {name: (record.status, record.scores) for name, record in found.items()} == {
        name: (Status.COMPLETE, record.scores) for name, record in expected.items()
    }


def test_first_epoch_is_scored_while_its_training_goes_on(cluster: None, tmp_path: Path) -> None:
    """The run is stopped by the record: were it to wait for the training, all would be complete."""
    stop = StopSignal()

    def listen(event: RunEvent) -> None:
        if isinstance(event, CellRecorded):
            stop.request("the first epoch is scored")

    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    blocks = [block | {"horizon": 5000, "snapshots": [1, 5000]}]
    resources = [{"when": {"setting": "lora"}, "workers": 2, "zero": 2}]
    path = small_sweep(tmp_path, blocks=blocks, measures=[], resources=resources)
    plan = replace(make_plan(load_sweep(path)), base=())
    run_on_ray(plan, listen, lambda _: None, stop=stop)
    assert {name: record.status for name, record in records(tmp_path).items()} == {"lora-1": Status.COMPLETE}
    (home,) = (tmp_path / "ledger" / "trajectories").iterdir()
    assert [folder.name for folder in (home / "training").iterdir()] == ["epoch-1"]
    assert (home / "resume" / "latest.json").exists()


def test_mixed_shapes_all_finish_and_one_failure_leaves_the_others(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full tuning on two workers, LoRA on one, and a setting whose adapters fit nothing in the model.

    A file server takes its time to remove a snapshot: what happens meanwhile is heard.
    """
    recorded, over, waited = list[RunEvent](), threading.Event(), list[bool]()

    def listen(event: RunEvent) -> None:
        recorded.extend([event] if isinstance(event, CellRecorded) else [])
        if len(recorded) == 4:
            over.set()

    def remove_slowly(ledger: Ledger, trajectory: str, epoch: int) -> None:
        waited.append(over.wait(60))
        remove_snapshot(ledger, trajectory, epoch)

    monkeypatch.setattr(trial, "remove_snapshot", remove_slowly)
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 8},
        "full": {"method": "full", "lr": 1e-3},
        "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
        "broken": {"method": "lora", "lr": 5e-3, "lora": {"targets": ["no_such_module"]}},
    }
    block = {"name": "A", "model": "all", "mixture": "one", "setting": ["broken", "lora", "full"]}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
    resources = [{"when": {"setting": "full"}, "workers": 2, "zero": 2}]
    path, said = small_sweep(tmp_path, settings=settings, blocks=[block], resources=resources, measures=[]), list[str]()
    run_on_ray(make_plan(load_sweep(path)), listen, said.append)
    assert waited and all(waited)
    found = {name: record.status for name, record in records(tmp_path).items()}
    assert found == {
        "none-0": Status.COMPLETE, "full-1": Status.COMPLETE, "lora-1": Status.COMPLETE, "broken-1": Status.FAILED
    }  # fmt: skip
    assert "no_such_module" in str(records(tmp_path)["broken-1"].error)
    assert records(tmp_path)["full-1"].training["layout"]["workers"] == 2
    assert any("2 x 0.5 CPU" in line for line in said)


def test_error_in_the_run_itself_ends_its_lanes_as_a_cancellation_does(cluster: None, tmp_path: Path) -> None:
    """What still trains when Ray is left would die without a checkpoint, and take this process with it."""

    def full(event: RunEvent) -> None:
        if isinstance(event, TrainingProgressed):
            raise OSError(errno.ENOSPC, "the disk of the log")

    plan = make_plan(load_sweep(one_training(tmp_path, epochs=20)))
    with pytest.raises(OSError, match="the disk of the log"):
        run_on_ray(plan, full, lambda _: None)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("1 x 1 CPU")]
    (trajectory,) = (tmp_path / "ledger" / "trajectories").iterdir()
    assert (trajectory / "resume" / "latest.json").exists()
    seen = read_lease(Folder(trajectory / "lease"))
    assert seen is not None
    assert seen.released
    assert not records(tmp_path)


def test_run_that_loses_a_queue_ends_with_a_sentence_and_leaves_nothing_in_ray(cluster: None, tmp_path: Path) -> None:
    """A thread that still waits for a lane when Ray is left would take this process with it."""
    path = one_training(tmp_path)
    for queue in ("LanePool", "CellQueue"):
        with pytest.raises(ClusterLost, match="run the same command to go on"):
            run_on_ray(make_plan(load_sweep(path)), kill_when_it_trains(f"ray::{queue}"), lambda _: None)
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("1 x", "scorers", "tune"))]
        assert not left, queue
    run(path)
    assert {name: record.status for name, record in records(tmp_path).items()} == {"full-10": Status.COMPLETE}


def kill_when_it_trains(title: str) -> Callable[[RunEvent], None]:
    """Return a listener that kills the one process whose title begins so, once something trains."""
    killed: list[int] = []

    def listen(event: RunEvent) -> None:
        if isinstance(event, TrainingProgressed) and not killed:
            killed.extend(process.pid for process in descendants() if process.title.startswith(title))
            assert len(killed) == 1, title
            os.kill(killed[0], signal.SIGKILL)

    return listen


def test_killed_trial_begins_again_and_its_cell_gets_its_record(cluster: None, tmp_path: Path) -> None:
    """As the kernel does on a head that is out of memory: the lane goes on, and nobody would queue the cell."""
    path, said = one_training(tmp_path, epochs=5), list[str]()
    run_on_ray(make_plan(load_sweep(path)), kill_when_it_trains("ray::Trial"), said.append)
    assert any("was killed; it begins again" in line for line in said), said
    assert {name: record.status for name, record in records(tmp_path).items()} == {"full-5": Status.COMPLETE}


class Halving:
    """Trains all for one epoch, goes on with the better one to the next, and stops."""

    grows = True

    def __init__(self, runs: Sequence[RunPlan]):
        self.known: Sequence[RunPlan] = ()
        self._first = [self._until(run, 1) for run in runs]
        self._runs = {run.trajectory.id: run for run in runs}
        self._of = {cell.cell.id: run.trajectory.id for run in runs for cell in run.cells}
        self._open = {run.cells[0].cell.id for run in self._first}
        self.scores = dict[str, float]()  # by trajectory
        self.promoted = ""

    @staticmethod
    def _until(run: RunPlan, epoch: int) -> RunPlan:
        cells = tuple(cell for cell in run.cells if cell.cell.epoch <= epoch)
        return replace(run, cells=cells, trajectory=replace(run.trajectory, cells=tuple(cell.cell for cell in cells)))

    def next(self) -> tuple[RunPlan, float] | None:
        if self._first:
            return self._first.pop(), 0.0
        if self._open or self.promoted:
            return None
        self.promoted = max(self.scores, key=self.scores.__getitem__)
        return self._runs[self.promoted], 1.0

    def told(self, event: CellRecorded) -> None:
        if event.cell.id in self._open:
            self._open.remove(event.cell.id)
            tasks = [task for one in event.record.scores.values() for task in one.tasks.values()]
            self.scores[self._of[event.cell.id]] = sum(score.value for task in tasks for score in task.values())

    def is_exhausted(self) -> bool:
        return bool(self.promoted)


def test_source_that_decides_by_scores_proposes_promotes_and_stops(
    cluster: None, inline: Path, judge: JudgeServer, tmp_path: Path
) -> None:
    """What is promoted goes on from its kept state, and its scores are those of a sweep that asks for all."""
    shutil.copytree(inline / "world", tmp_path / "world")
    storage = {"root": str(tmp_path / "ledger"), "keep_state": "last"}
    plan = make_plan(load_sweep(judged_sweep(tmp_path, judge, storage=storage)))
    work, happened = Halving(plan.todo), list[RunEvent]()
    run_on_ray(plan, happened.append, lambda _: None, work=work)
    assert len(work.scores) == 2
    (promoted,) = [run.trajectory for run in plan.runs if run.trajectory.id == work.promoted]
    setting = promoted.cells[0].coordinates.setting
    found, expected = records(tmp_path), records(inline)
    assert found.keys() == {"none-0", "full-1", "lora-1", f"{setting}-2"}
    for name, record in found.items():
        assert (record.status, record.scores) == (Status.COMPLETE, expected[name].scores), (name, record.error)
    steps: dict[str, list[int]] = {identity: [] for identity in work.scores}
    for event in happened:
        if isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone):
            steps[event.trajectory.id].append(event.event.step)
    other = next(identity for identity in steps if identity != work.promoted)
    assert steps == {work.promoted: [1, 2, 3, 4, 5, 6], other: [1, 2, 3]}


def test_reader_that_is_killed_takes_no_cell_with_it(cluster: None, tmp_path: Path) -> None:
    """It has given out a cell before: one that Ray starts again would give out the next in vain."""
    plan, killed = make_plan(load_sweep(one_lora(tmp_path))), list[int]()

    def listen(event: RunEvent) -> None:
        if isinstance(event, CellRecorded) and not killed:
            killed.extend(process.pid for process in descendants() if process.title.startswith("ray::ReadCellSource"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    run_on_ray(plan, listen, lambda _: None)
    assert killed
    assert [record.status for record in records(tmp_path).values()] == [Status.COMPLETE] * len(plan.cells)


def test_run_that_starts_slowly_takes_its_own_processes_for_no_other_job_s(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_on_ray_module, "LIMITS", Limits(silence_s=0.2))
    _, said = run(small_sweep(tmp_path, measures=[]))
    silent = [text for text in said if text.startswith("nothing moved for")]
    assert any("free: 0 CPU" in text for text in silent), said
    assert any("lane 1 x 1 CPU #1 starts" in text for text in silent), said
    assert not [text for text in silent if "other jobs" in text]


def run_beside_a_holder(path: Path) -> None:
    """Run a sweep on a Ray all of whose CPUs somebody else holds."""

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> bool:
            return True

    run_on_ray_module.LIMITS.silence_s = 2.0
    scorers.LATE_S = 1.0

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201
        if "2 trainings wait for a lane" in text:  # however long Tune took to start them
            run_on_ray_module.LIMITS.start_s = 6.0

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    try:
        run_on_ray(make_plan(load_sweep(path)), ignore, say)
    except Stuck as error:
        print("STUCK", error, flush=True)  # noqa: T201
        os._exit(error.exit_code)


def test_run_that_gets_no_cpu_ends_with_its_reason(tmp_path: Path) -> None:
    """Somebody else holds the whole cluster: a process of its own, for it leaves a lane that waits."""
    path = small_sweep(tmp_path, measures=[])
    code, printed = call(run_beside_a_holder, path, out=tmp_path / "printed", seconds=150)
    assert code == ExitCode.TRY_AGAIN, printed
    assert "nothing moved for" in printed
    assert "scorers #1 (1 of 1 x 1 CPU, node " in printed and " s; free there: 0 CPU; where nobody" in printed
    reason = printed.partition("STUCK ")[2]
    assert "2 trainings wait for a lane of 1 x 1 CPU" in reason
    assert "free: 0 CPU" in reason


class Deadly:
    """Whatever process is given it ends."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (1,)


def test_judges_whose_process_dies_again_and_again_end_the_run_with_what_to_do(cluster: None, tmp_path: Path) -> None:
    cell = make_plan(load_sweep(small_sweep(tmp_path))).cells[0]
    judges = Judges(CellQueue.remote(), None, Deadly(), ignore)  # type: ignore[arg-type]
    judges.take(AnswersWritten(cell, "weights"))
    with pytest.raises(JudgesLost, match=r"died again and again; .* run the same command to go on") as lost:
        judges.serve()
    assert lost.value.exit_code == ExitCode.TRY_AGAIN


def test_order_of_a_lane_that_is_lost_waits_for_another(cluster: None) -> None:
    shape, said = Shape(1, 1.0, 0.0), list[str]()
    pool = LanePool.remote({shape: 1})
    ray.get(pool.submit.remote(shape, "last", b""))
    ray.get(pool.next.remote("lost", shape))
    lanes = Lanes(pool, said.append)
    lanes._lanes["lost"] = _Lane("lost", shape, ("node",), 0.0, error="killed")
    lanes.reap(ray.get(pool.state.remote()), [])
    assert said == ["lane lost is lost: killed"]
    assert not lanes.holders()
    assert ray.get(pool.state.remote())["queued"] == {shape: 1}


@pytest.mark.parametrize(("places", "fails"), [([], False), (["only"], True)], ids=["none is left", "the same is left"])
def test_scorers_that_went_with_their_node_are_waited_for(cluster: None, places: list[str], fails: bool) -> None:
    failed = list[BaseException]()
    queue: Any = CellQueue.remote()
    unasked: Any = None  # relay, records and judges, of which losses need nothing
    groups = scorers.ScorerGroups(queue, unasked, unasked, unasked, Shape(1, 1.0, 1.0), print, print, failed.append)
    for number in range(2):
        name = f"scorers #{number}"
        ended = threading.Thread(target=int)
        ended.start()
        ended.join()
        groups._groups[name] = scorers._Group(
            name, "only", 1, 0.0, error=scorers.GroupLost("its process died"), thread=ended
        )
        ray.get(queue.enter.remote(name, 1))
        groups.reap(ray.get(queue.state.remote()), ["head", *places], places)
    assert bool(failed) == fails


def test_lane_that_waits_for_its_place_ends_with_its_node_and_gives_the_place_back(cluster: None) -> None:
    """Ray would wait for a node that is gone, for ever."""
    shape, said = Shape(1, 9.0, 0.0), list[str]()
    pool, node = LanePool.remote({shape: 1}), ray.get_runtime_context().get_node_id()
    before = live_groups()
    lanes = Lanes(pool, said.append)
    lanes.start(shape, (node,))
    deadline = time.monotonic() + 60
    while before >= live_groups() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(live_groups() - before) == 1
    lanes.reap(ray.get(pool.state.remote()), [node])
    assert lanes.holders(), "it may wait"
    while lanes.holders() and time.monotonic() < deadline:
        lanes.reap(ray.get(pool.state.remote()), ["another"])
        time.sleep(0.05)
    assert said[1:] == [f"lane {shape} #1 is lost: a node of it is gone"]
    assert live_groups() <= before


def live_groups() -> set[str]:
    return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}


def test_newer_autoscaler_adds_the_nodes_of_the_kind_that_lanes_lack(cluster: None) -> None:
    """That of Kubernetes: its own decision on what this Ray reports of the claims of a run."""
    types = {"cpu": {"CPU": 64.0}} | {
        kind: {"CPU": 32.0, "GPU": 8.0, f"accelerator_type:{kind}": 1.0} for kind in ("A100", "H100")
    }
    configs = {name: NodeTypeConfig(name, 0, 10, resources=resources) for name, resources in types.items()}
    gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    lacking = {Shape(8, 4.0, 1.0, "H100"): 1, Shape(4, 4.0, 1.0, "A100"): 2, Shape(1, 1.0, 0.0): 2}
    claims, deadline = Claims(), time.monotonic() + 60
    claims.ask(lacking, [ray.get_runtime_context().get_node_id()])
    try:
        while len(wanted := get_cluster_resource_state(gcs).pending_gang_resource_requests) < 5:
            assert time.monotonic() < deadline, wanted
            time.sleep(0.05)
        request = SchedulingRequest(True, configs, 20, gang_resource_requests=list(wanted))
        launched = ResourceDemandScheduler().schedule(request).to_launch
    finally:
        claims.withdraw()
    assert {launch.instance_type: launch.count for launch in launched} == {"cpu": 1, "A100": 1, "H100": 1}
    assert not get_cluster_resource_state(gcs).pending_gang_resource_requests


def test_size_is_read_in_bytes() -> None:
    assert (parse_size("2TB"), parse_size("1.5 kB"), parse_size("7B")) == (2e12, 1500, 7)


# The pool between trials and lanes, without Ray

ONE, TWO = Shape(1, 1.0, 0.0), Shape(2, 1.0, 0.0)
Pool = LanePool.__ray_metadata__.modified_class


def test_order_of_a_restarted_lane_is_given_again_and_fails_at_last() -> None:
    async def scenario() -> list[Message]:
        pool = Pool(Counter({ONE: 1}))
        await pool.submit(ONE, "order", b"data")
        assert [await pool.next("lane", ONE) for _ in range(3)] == [b"data"] * 3
        assert await pool.next("lane", ONE) is None
        return await pool.messages("order")

    (message,) = asyncio.run(scenario())
    assert (message.kind, "died 3 times" in message.content) == ("failed", True)


def test_order_that_is_tried_in_another_way_has_its_tries_anew() -> None:
    async def scenario() -> list[bytes | None]:
        pool = Pool(Counter({ONE: 1}))
        await pool.submit(ONE, "order", b"data")
        given = [await pool.next("lane", ONE) for _ in range(3)]
        await pool.again("lane")
        return given + [await pool.next("lane", ONE) for _ in range(4)]

    assert asyncio.run(scenario()) == [b"data"] * 6 + [None]


def test_order_fails_with_what_its_workers_ended_with() -> None:
    async def scenario() -> list[Message]:
        pool = Pool(Counter({ONE: 1}))
        await pool.submit(ONE, "order", b"data")
        for _ in range(3):
            await pool.next("lane", ONE)
            await pool.blame("lane", "RuntimeError: connection closed by peer")
        assert await pool.next("lane", ONE) is None
        return await pool.messages("order")

    (message,) = asyncio.run(scenario())
    assert (message.kind, "3 times without getting further; RuntimeError: connection" in message.content) == (
        "failed",
        True,
    )


def test_trial_whose_run_was_killed_records_no_failure(cluster: None) -> None:
    pool = LanePool.remote(Counter({ONE: 1}))
    ray.get(pool.state.remote())
    ray.kill(pool)
    with pytest.raises(Interrupted, match="the run is gone"):
        ask(pool.messages.remote("order"))


class Impatient(LeaseWatch):
    """Sees every lease as one that stood still for long enough."""

    def may_be_taken(self, lease: Storage, seen: LeaseState | None) -> bool:
        return True


def test_training_that_lost_its_lease_in_a_lane_is_left_to_who_took_it(tmp_path: Path) -> None:
    """A lane sends why it failed as text; a FAILED record of it would be the outcome for who waits for the other."""
    plan = make_plan(load_sweep(small_sweep(tmp_path)))
    run, recorder, happened = plan.todo[0], make_record_writer(plan), list[RunEvent]()

    def fails(order: Order, report: object) -> None:
        assert Lease.acquire(order.attempt.claim.lease, "elsewhere:1", Impatient()) is not None
        raise LaneFailed("LeaseLost: held now by elsewhere:1")

    handed: list[CellPlan] = []
    train_run(run, recorder, fails, happened.append, handed.extend)
    assert not handed
    assert [type(event) for event in happened] == [TrainingEnded, CellSkipped]
    assert happened[1] == CellSkipped(
        "LaneFailed: LeaseLost: held now by elsewhere:1", tuple(c.cell.id for c in run.cells)
    )
    assert not list(recorder.ledger.records())


def test_training_that_its_run_ended_is_not_told_to_be_over(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(small_sweep(tmp_path)))
    happened = list[RunEvent]()

    def ends(order: Order, report: object) -> None:
        raise Interrupted("the run ends")

    train_run(plan.todo[0], make_record_writer(plan), ends, happened.append, lambda cells: None)
    assert not happened


def test_workers_that_died_while_they_waited_take_no_order_with_them() -> None:
    async def scenario() -> None:
        pool = Pool(Counter({ONE: 1}))
        dead = asyncio.create_task(pool.next("lane", ONE))
        await asyncio.sleep(0)
        restarted = asyncio.create_task(pool.next("lane", ONE))
        await asyncio.sleep(0)
        await pool.submit(ONE, "order", b"data")
        assert (await dead, await restarted) == (None, b"data")

    asyncio.run(scenario())


def test_reader_that_died_while_it_waited_takes_no_cell_with_it() -> None:
    async def scenario() -> None:
        queue = CellQueue.__ray_metadata__.modified_class()
        dead = asyncio.create_task(queue.take("group", await queue.again("group")))
        await asyncio.sleep(0)
        reader = await queue.again("group")
        await queue.put([("cell", b"")])
        assert (await queue.take("group", reader), await dead) == (("cell", b""), None)

    asyncio.run(scenario())


def test_idle_lane_ends_when_it_is_told_to_leave() -> None:
    async def scenario() -> None:
        pool = Pool(Counter({ONE: 2}))
        waiting = asyncio.create_task(pool.next("lane", ONE))
        await asyncio.sleep(0)
        assert not waiting.done()
        await pool.leave(["lane"])
        assert await waiting is None

    asyncio.run(scenario())


def test_lane_ends_after_its_order_when_it_is_asked_to_leave() -> None:
    async def scenario() -> None:
        pool = Pool(Counter({ONE: 2}))
        for order in ("a", "b"):
            await pool.submit(ONE, order, order.encode())
        assert await pool.next("lane", ONE) == b"a"
        await pool.leave(["lane"])
        await pool.tell("lane", Message("done"))
        assert await pool.next("lane", ONE) is None
        assert await pool.next("other", ONE) == b"b"

    asyncio.run(scenario())


def test_shape_whose_lanes_cannot_start_fails_its_orders() -> None:
    async def scenario() -> list[str]:
        pool = Pool(Counter({ONE: 2}))
        await pool.submit(ONE, "queued", b"")
        await pool.break_shape(ONE, "no module named x")
        await pool.submit(ONE, "later", b"")
        return [(await pool.messages(order))[0].content for order in ("queued", "later")]

    assert asyncio.run(scenario()) == ["no module named x"] * 2
