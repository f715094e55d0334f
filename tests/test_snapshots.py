"""Snapshots are published and can be scored once their epoch ends, whatever becomes of the training afterwards."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Fault, command, kill
from disturbed import identities
from small_sweep import small_sweep

from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.loss_curve import read_steps
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.warm_model import WarmModel
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running import publishing, read_ahead
from massive_sft.running.cell import CellEvaluator, evaluate_cell
from massive_sft.running.events import CellRecorded, RunEvent, TrainingProgressed, TrainingStarted
from massive_sft.running.inline import run_inline, submit_inline
from massive_sft.running.outcome import open_snapshot
from massive_sft.running.read_ahead import ReadAhead
from massive_sft.running.trial import make_record_writer, train_run
from massive_sft.sweep.load import load_sweep
from massive_sft.training.events import Resumed, StepDone

pytestmark = pytest.mark.timeout(240)

STEPS = 3  # an epoch
TIMES = {"seconds", "run_seconds", "wall_seconds", "peak_bytes", "resumed"}  # of a training, which a fault may change
FIRST = "ledger/trajectories/*/[st]*/epoch-1/*"  # the files of the first epoch: its snapshot, its outcome


def sweep_at(folder: Path, **changes: Any) -> Path:
    """Write a sweep of one LoRA training with snapshots of three epochs."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    changes = {"measures": [], "storage": {"root": str(folder / "ledger")}} | changes
    return small_sweep(folder, blocks=[block | {"horizon": 3, "snapshots": [1, 2, 3]}], **changes)


def planned(path: Path) -> Plan:
    return make_plan(load_sweep(path))


def records(folder: Path) -> dict[int, Record]:
    """Return the records of a folder's ledger by epoch."""
    ledger = Ledger.open(folder / "ledger", create=False)
    found = {int(str(record.coordinates["epoch"])): record for record in ledger.records()}
    assert not ledger.corrupt
    return found


def results(folder: Path) -> dict[Any, Any]:
    """Return what does not depend on how often a training was disturbed."""
    facts: dict[Any, Any] = {
        path.parent.name: hash_file(path) for path in folder.glob("ledger/**/epoch-*/*.safetensors")
    }
    for epoch, record in records(folder).items():
        training = {key: value for key, value in record.training.items() if key not in TIMES}
        facts[epoch] = (record.status, record.scores, record.counts, training, record.missing)
    return facts


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep after a run that nobody disturbed, whose first epoch was published a step later."""
    folder, is_further = tmp_path_factory.mktemp("whole"), threading.Event()
    check = publishing.require_same_model

    def checked_late(*arguments: Any) -> None:
        assert is_further.wait(60)
        check(*arguments)

    def listen(event: RunEvent) -> None:
        if told(event) == STEPS + 1:
            is_further.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "require_same_model", checked_late)
        run_inline(planned(sweep_at(folder)), listen)
    return folder


def test_loss_curve_of_an_epoch_ends_with_it_though_the_training_was_further(whole: Path) -> None:
    (home,) = (whole / "ledger" / "trajectories").iterdir()
    lines = {path.parent.name: len(path.read_text().splitlines()) for path in home.glob("training/*/losses.jsonl")}
    assert lines == {"epoch-1": STEPS, "epoch-2": 2 * STEPS, "attempt-1": 3 * STEPS}


def test_each_epoch_has_its_snapshot_and_its_outcome_and_the_last_one_that_of_the_whole(whole: Path) -> None:
    (home,) = (whole / "ledger" / "trajectories").iterdir()
    assert sorted(path.name for path in (home / "snapshots").iterdir()) == ["epoch-1", "epoch-2", "epoch-3"]
    assert sorted(path.name for path in (home / "training").iterdir()) == ["attempt-1", "epoch-1", "epoch-2"]
    for epoch, record in records(whole).items():
        if epoch:
            assert record.status is Status.COMPLETE
            assert record.training["run_steps"] == record.training["steps"] == epoch * STEPS
            own = "attempt-1" if epoch == 3 else f"epoch-{epoch}"
            assert {name.split("/")[3] for name in record.files if "/training/" in name} == {own}
    assert not list(home.glob("attempts/*/*"))


def test_epoch_is_scored_while_its_training_goes_on(whole: Path, tmp_path: Path) -> None:
    plan = planned(sweep_at(tmp_path))
    run, recorder, happened = plan.todo[0], make_record_writer(plan), list[RunEvent]()
    finisher = CellEvaluator(recorder)
    train_run(
        run, recorder, submit_inline, happened.append,
        lambda cells: [evaluate_cell(cell, run, finisher, happened.append) for cell in cells] and None,
    )  # fmt: skip
    order = [told(event) for event in happened]
    assert order.index("epoch 1") < order.index(7), "before the second snapshot is taken"
    assert [item for item in order if str(item).startswith("epoch")] == ["epoch 1", "epoch 2", "epoch 3"]
    assert results(tmp_path) == {key: value for key, value in results(whole).items() if key != 0}


@pytest.mark.parametrize("damaged", [False, True])
def test_next_snapshot_is_opened_while_the_present_one_is_used(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    shutil.copytree(whole / "ledger", tmp_path / "ledger")
    (run,) = planned(sweep_at(tmp_path)).runs
    ledger, warm, opened = Ledger.open(tmp_path / "ledger"), WarmModel(), list[tuple[int, bool]]()
    following, is_ahead = iter([run.cells[1], run.cells[2]]), threading.Event()

    @contextmanager
    def noted(ledger: Ledger, trajectory: str, epoch: int) -> Iterator[Any]:
        opened.append((epoch, threading.current_thread() is threading.main_thread()))
        is_ahead.set()
        with open_snapshot(ledger, trajectory, epoch) as found:
            yield found

    monkeypatch.setattr(read_ahead, "open_snapshot", noted)
    ahead = ReadAhead(lambda: (next(following), run), warm)
    model, trajectory = run.trajectory.recipe.model, run.trajectory.id
    for epoch in (1, 2, 3):
        is_ahead.clear()
        if damaged and epoch == 3:
            for path in ledger.root.glob("trajectories/*/snapshots/epoch-3/*.safetensors"):
                path.write_bytes(b"damaged" + path.read_bytes()[7:])
        with ahead.open(ledger, trajectory, epoch) as found:
            if damaged and epoch == 3:
                assert found is None
                return
            assert found is not None and found[1]
            weights = warm.load(model, found[0], "fp32").state_dict()
            fresh = load_for_scoring(model, found[0], "fp32").state_dict()
            assert all(torch.equal(weights[name], fresh[name]) for name in fresh)
            assert epoch == 3 or is_ahead.wait(60)
    assert opened == [(1, True), (2, False), (3, False)]


def told(event: RunEvent) -> object:
    """Return the step that was taken or the epoch that was recorded."""
    if isinstance(event, CellRecorded):
        return f"epoch {event.cell.epoch}"
    is_step = isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone)
    return event.event.step if is_step else None  # type: ignore[union-attr]


@pytest.mark.parametrize("every", [pytest.param("auto", marks=pytest.mark.long), 0])
def test_killed_training_keeps_the_epochs_that_it_published(whole: Path, tmp_path: Path, every: object) -> None:
    """With checkpoints after every step, and with none, where it begins anew."""
    path = sweep_at(tmp_path, storage={"root": str(tmp_path / "ledger"), "resume_every": every})

    def killed(at: str) -> dict[Path, tuple[int, int]]:
        code, printed = command("run", path, "--inline", out=tmp_path / "out", fault=Fault(at, kill))
        assert code == -signal.SIGKILL, printed
        return identities(tmp_path, FIRST)

    begun = killed(r"/training/epoch-1$")
    assert begun and not any("training" in place.parts for place in begun), "between a snapshot and its outcome"
    kept = killed(r"snapshots/\.epoch-2\.partial/0/adapter_config.json")
    assert kept.items() > begun.items(), "an equal snapshot stays"
    assert not {1, 2, 3} & records(tmp_path).keys()
    happened: list[RunEvent] = []
    run_inline(select_cells(planned(path), parse_where("epoch=1")), happened.append)
    assert not any(isinstance(event, TrainingStarted) for event in happened), "it can be scored without a training"
    assert records(tmp_path)[1].attempt == 2
    killed(r"/training/attempt-\d$")
    happened.clear()
    run_inline(planned(path), happened.append)
    resumed = [
        event.event.step
        for event in happened
        if isinstance(event, TrainingProgressed) and isinstance(event.event, Resumed)
    ]
    assert resumed == ([] if every == "auto" else [8])
    assert identities(tmp_path, FIRST) == kept
    assert results(tmp_path) == results(whole)


def listening(at: int, strike: Callable[[], None], happened: list[RunEvent]) -> Callable[[RunEvent], None]:
    """Return a listener that strikes once a step was taken."""

    def listen(event: RunEvent) -> None:
        happened.append(event)
        if told(event) == at:
            strike()

    return listen


def test_training_that_fails_leaves_the_epochs_before_scored(whole: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("in the second epoch")

    path = sweep_at(tmp_path)
    run_inline(planned(path), listening(STEPS + 2, fail, []))
    assert {epoch: record.status for epoch, record in records(tmp_path).items()} == {
        0: Status.COMPLETE, 1: Status.COMPLETE, 2: Status.FAILED, 3: Status.FAILED
    }  # fmt: skip
    run_inline(planned(path), lambda event: None)
    assert results(tmp_path) == results(whole)


def test_base_replaced_in_the_second_epoch_leaves_what_the_first_read_from_the_planned_one(
    whole: Path, tmp_path: Path
) -> None:
    path = sweep_at(tmp_path)
    plan = planned(path)
    weights = Path(plan.base[0].cell.model.path or "") / "model.safetensors"
    planned_ones = weights.read_bytes()

    def write(data: bytes) -> None:
        weights.with_name("other.tmp").write_bytes(data)
        weights.with_name("other.tmp").replace(weights)

    happened: list[RunEvent] = []
    run_inline(plan, listening(STEPS + 2, lambda: write(planned_ones + b" "), happened))
    assert {epoch: record.status for epoch, record in records(tmp_path).items() if epoch} == dict.fromkeys(
        (1, 2, 3), Status.FAILED
    )
    (home,) = (tmp_path / "ledger" / "trajectories").iterdir()
    counting = [path for name in ("snapshots", "training", "resume") for path in home.glob(f"{name}/*")]
    assert {path.relative_to(home).as_posix() for path in counting} == {"snapshots/epoch-1", "training/epoch-1"}
    write(planned_ones)
    kept = identities(tmp_path, FIRST)
    run_inline(planned(path), lambda event: None)
    assert identities(tmp_path, FIRST) == kept
    assert results(tmp_path) == results(whole)


def of_another_layout(path: Path) -> Path:
    """Have a sweep's training add in another order, which gives other last bits."""
    return sweep_at(path.parent, resources=[{"when": {"model": "all"}, "micro_batch": 1}])


def test_training_begun_anew_on_another_layout_leaves_the_pair_of_an_epoch_together(tmp_path: Path) -> None:
    path = sweep_at(tmp_path)
    command("run", path, "--inline", out=tmp_path / "out", fault=Fault(r"snapshots/\.epoch-2\.partial", kill))
    kept = identities(tmp_path, FIRST)
    run_inline(planned(of_another_layout(path)), lambda event: None)
    assert identities(tmp_path, FIRST) == kept
    by_epoch = {epoch: record for epoch, record in records(tmp_path).items() if epoch}
    assert {epoch: record.attempt for epoch, record in by_epoch.items()} == {1: 1, 2: 2, 3: 2}
    layouts = {epoch: record.training["layout"]["micro_batch"] for epoch, record in by_epoch.items()}
    assert layouts == {1: "auto", 2: 1, 3: 1}


def test_snapshot_left_without_its_outcome_gives_way_to_one_that_differs(tmp_path: Path) -> None:
    path = sweep_at(tmp_path)
    command("run", path, "--inline", out=tmp_path / "out", fault=Fault(r"/training/epoch-1$", kill))
    (left,) = tmp_path.glob("ledger/trajectories/*/snapshots/epoch-1/adapter_model.safetensors")
    before = hash_file(left)
    run_inline(planned(of_another_layout(path)), lambda event: None)
    assert hash_file(left) != before
    assert {record.attempt for epoch, record in records(tmp_path).items() if epoch} == {2}


def curves(folder: Path) -> dict[int, str]:
    """Return the folder of the loss curve that the record of each epoch rests on: one, as it says."""
    ledger, found = Ledger.open(folder / "ledger", create=False), {}
    for epoch, record in records(folder).items():
        if epoch:
            (name,) = (name for name in record.files if name.endswith("/losses.jsonl"))
            steps = list(read_steps(ledger.verified_file(record, name)))
            assert steps[record.training["steps"] - 1].epoch == epoch
            found[epoch] = Path(name).parent.name
    return found


@pytest.mark.parametrize("layout", ["auto", 1])
def test_record_of_a_snapshot_that_was_made_again_is_of_the_training_that_made_it(
    tmp_path: Path, layout: str | int
) -> None:
    kept = {"root": str(tmp_path / "ledger"), "keep_snapshots": {"full": "none", "lora": "none"}}
    path = sweep_at(tmp_path, storage=kept)
    run_inline(planned(path), lambda event: None)
    assert curves(tmp_path) == {1: "epoch-1", 2: "epoch-2", 3: "attempt-1"}
    first = records(tmp_path)
    rules = [{"when": {"model": "all"}, "micro_batch": layout}]
    sweep_at(tmp_path, storage=kept, resources=rules, measures=["layer_change"])
    run_inline(planned(path), lambda event: None, retrain=True)
    again = {epoch: record for epoch, record in records(tmp_path).items() if epoch}
    assert all("layer_change" in record.measures for record in again.values())
    assert {record.scores == first[epoch].scores for epoch, record in again.items()} == {True}
    by, layouts = (
        {record.attempt for record in again.values()},
        {r.training["layout"]["micro_batch"] for r in again.values()},
    )
    if layout == "auto":  # the same weights, so it is the training that it was
        assert (by, layouts) == ({1}, {"auto"})
        assert {epoch: record.training for epoch, record in again.items()} == {
            epoch: record.training for epoch, record in first.items() if epoch
        }
        return
    assert (by, layouts) == ({2}, {1})
    places = curves(tmp_path)
    assert all(re.fullmatch(rf"epoch-{epoch}-[0-9a-f]{{8}}", place) for epoch, place in places.items())
    sweep_at(tmp_path, storage=kept, resources=rules, measures=["layer_change", "token_length"])
    run_inline(planned(path), lambda event: None)
    assert {record.attempt for epoch, record in records(tmp_path).items() if epoch} == {2}, "which its weights were of"
    assert curves(tmp_path) == places


def test_killed_right_before_a_snapshot_that_is_made_again_leaves_what_was_scored_with_its_training(
    tmp_path: Path,
) -> None:
    kept = {"root": str(tmp_path / "ledger"), "keep_snapshots": {"full": "none", "lora": "none"}}
    path = sweep_at(tmp_path, storage=kept)
    run_inline(planned(path), lambda event: None)
    rules = [{"when": {"model": "all"}, "micro_batch": 1}]
    sweep_at(tmp_path, storage=kept, resources=rules, measures=["token_length", "layer_change"])
    fault = Fault(r"/snapshots/epoch-1$", kill)
    command("run", path, "--inline", "--retrain", out=tmp_path / "out", fault=fault)
    run_inline(planned(path), lambda event: None)  # without weights
    assert {(record.attempt, record.status) for epoch, record in records(tmp_path).items() if epoch} == {
        (1, Status.PARTIAL)
    }
    run_inline(planned(path), lambda event: None, retrain=True)
    again = [record for epoch, record in records(tmp_path).items() if epoch]
    assert {(record.status, record.training["layout"]["micro_batch"]) for record in again} == {(Status.COMPLETE, 1)}
    assert set(curves(tmp_path).values()).isdisjoint({"epoch-1", "epoch-2", "attempt-1"})
