"""A longer training goes on from the state that a shorter one kept, bit by bit, and takes only the missing steps."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Fault, call, install, kill
from resuming import DROPOUT, Crash, Told, begin, finish, go
from small_sweep import small_sweep
from tiny_training import make_base, make_spec

from massive_sft.cli.gc import collect, remove
from massive_sft.core.errors import Interrupted, LeaseLost
from massive_sft.core.fingerprint import hash_file
from massive_sft.cost.estimate import estimate
from massive_sft.cost.formatting import cost_lines
from massive_sft.cost.time_left import TimeLeft
from massive_sft.ledger.loss_curve import read_steps
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.events import RunEvent, TrainingProgressed
from massive_sft.running.inline import run_inline
from massive_sft.running.trial import trainings_left
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.events import Resumed, StartedOver, StepDone

STEPS = 3  # an epoch


def sweep_at(
    folder: Path,
    *snapshots: int,
    keep: str = "last",
    full: str = "last",
    setting: str = "lora",
    schedule: str = "constant",
    **changes: Any,
) -> Path:
    """Write a sweep of one training with these snapshots, of which ``full`` tuning's are kept as it says."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": setting, "schedule": schedule}
    block |= {"snapshots": list(snapshots), "horizon": max(snapshots)} | changes.pop("block", {})
    storage = {"root": str(folder / "ledger"), "keep_state": keep, "keep_snapshots": {"full": full, "lora": "all"}}
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 8},
        "full": {"method": "full", "lr": 1e-3},
        "lora": {"method": "lora", "lr": 5e-3, "lora": DROPOUT},
    }
    evaluation = {"protocol": {"dtype": "fp32"}, "tasks": []}
    parts = {"evaluation": evaluation, "measures": ["token_length"], "storage": storage, "settings": settings}
    return small_sweep(folder, **parts | changes, blocks=[block])


def planned(path: Path) -> Plan:
    return make_plan(load_sweep(path))


def ran(path: Path, retrain: bool = False, lacking: int = 0) -> Told:
    """Run a sweep in this process, which ends with so many cells PARTIAL; return what its trainings told."""
    told = Told()

    def listen(event: RunEvent) -> None:
        if isinstance(event, TrainingProgressed):
            told(event.event)

    run_inline(planned(path), listen, retrain)
    statuses = planned(path).statuses
    assert statuses.keys() <= {Status.COMPLETE, Status.PARTIAL} and statuses[Status.PARTIAL] == lacking
    return told


def taken(told: Told) -> list[int]:
    return [event.step for event in told.of(StepDone)]


def home_of(path: Path) -> Path:
    (home,) = (planned(path).root / "trajectories").iterdir()
    return home


def outcome(home: Path) -> tuple[dict[str, str], list[float]]:
    """Return the hashes of the snapshots that lie there and the losses of the longest training."""
    weights = {path.parent.name: hash_file(path) for path in home.glob("snapshots/*/*.safetensors")}
    longest = max((list(read_steps(path)) for path in home.glob("training/*/losses.jsonl")), key=len)
    return weights, [step.loss for step in longest]


@pytest.fixture(scope="module", params=["lora", "full"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A setting, and the home of its training of three epochs that nobody disturbed."""
    path = sweep_at(tmp_path_factory.mktemp("whole"), 1, 2, 3, keep="none", full="all", setting=request.param)
    assert taken(ran(path)) == list(range(1, 3 * STEPS + 1))
    assert not (home_of(path) / "kept").exists() and not (home_of(path) / "resume").exists()
    return request.param, home_of(path)


def test_longer_training_takes_the_missing_steps_alone(undisturbed: tuple[str, Path], tmp_path: Path) -> None:
    """Horizon 1, then 2 with a snapshot between, then 3 without."""
    setting, whole = undisturbed
    assert taken(ran(sweep_at(tmp_path, 1, setting=setting))) == [1, 2, 3]
    told = ran(path := sweep_at(tmp_path, 1, 2, setting=setting))
    assert taken(told) == [4, 5, 6]
    assert told.of(Resumed) == [Resumed(STEPS, 1, ())]
    assert taken(ran(path)) == []
    assert taken(ran(sweep_at(tmp_path, 3, setting=setting))) == [7, 8, 9]
    weights, losses = outcome(home_of(path))
    expected, all_losses = outcome(whole)
    assert losses == all_losses
    assert weights.items() <= expected.items() and "epoch-3" in weights
    assert ("epoch-1" in weights) is (setting == "lora"), "a snapshot that is removed costs no step"
    (kept,) = (place for place in (home_of(path) / "kept").iterdir() if place.is_dir())
    assert kept.name.startswith("3-00000009-") and [place.name for place in kept.iterdir()] == ["state"]
    assert not (home_of(path) / "resume").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def tiny_spec(base: Path, *snapshots: int) -> TrainingSpec:
    return make_spec(base, snapshots, layout={"zero": "auto"}, method="lora", lora=DROPOUT)


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a training of one epoch whose last checkpoint lies there, before anything of it is kept."""
    home = tmp_path_factory.mktemp("finished") / "home"
    with begin(home) as attempt:
        go(tiny_spec(base, 1), attempt, Told(), every=None, keeps_state=True)
    return home


@pytest.fixture(scope="module")
def losses(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two epochs that nobody disturbed."""
    with begin(tmp_path_factory.mktemp("two") / "home") as attempt:
        go(tiny_spec(base, 2), attempt, told := Told(), every=None)
    return told.losses


def crash() -> None:
    raise Crash


# Linking, naming and clearing; and what comes after, until the checkpoint is gone.
PLACES = [(rf"/kept/.*{pattern}", skip) for pattern, skip in (("partial", 0), ("partial", 4), ("", 9), ("", 12))]
PLACES += [(r"/kept/\.?latest", 0), (r"/kept/\.?latest", 1), (r"/resume", 0), (r"/resume", 1)]


@pytest.mark.parametrize(("pattern", "skip"), PLACES)
def test_crash_at_any_point_of_keeping_a_state_costs_no_step(
    base: Path, finished: Path, losses: list[float], tmp_path: Path, pattern: str, skip: int
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    with begin(home) as attempt:
        install(Fault(pattern, crash, skip, removing=True))
        with pytest.raises(Crash):
            finish(attempt, STEPS)
    with begin(home) as attempt:
        go(tiny_spec(base, 1, 2), attempt, told := Told(), every=None, settled=frozenset({1}))
    assert taken(told) == [4, 5, 6]
    assert told.losses == losses[STEPS:]


def test_process_that_lost_its_lease_keeps_nothing(finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    with begin(home) as attempt:
        late = CheckpointStore(attempt.storage, attempt.claim)
    with begin(home), pytest.raises(LeaseLost):
        late.keep(STEPS)
    assert not (home / "kept" / "latest.json").exists()


KILLED = [
    (r"/kept/\d.*partial", 0),
    (r"/kept/.*latest", 0),
    (r"/training/\.?attempt-2", 0),
    (r"/resume/latest.json$", 1),
]


@pytest.mark.parametrize(("place", "skip"), KILLED)
def test_run_that_is_killed_while_it_keeps_a_state_goes_on_from_it(tmp_path: Path, place: str, skip: int) -> None:
    ran(sweep_at(tmp_path, 1))
    path = sweep_at(tmp_path, 1, 2)
    install(Fault(place, crash, skip, removing=True))
    with pytest.raises(Crash):
        ran(path)
    assert taken(ran(path)) == []
    assert taken(ran(sweep_at(tmp_path, 1, 2, 3))) == [7, 8, 9]


def run_killed(path: Path, fault: Fault) -> None:
    """Run a sweep in a process that a fault strikes."""
    install(fault)
    ran(path)


# Linking the state's files, naming it, publishing the training, and what is removed after that.
KILLS = [(r"/kept/.*partial", 3), (r"/kept/\.?latest", 0), (r"/training/\.?attempt-", 0), (r"/resume/latest.json$", 1)]


@pytest.mark.parametrize("undisturbed", ["lora"], indirect=True)
@pytest.mark.parametrize(("place", "skip"), KILLS)
def test_kill_between_a_state_and_the_record_of_its_training_loses_nothing(
    undisturbed: tuple[str, Path], tmp_path: Path, place: str, skip: int
) -> None:
    """SIGKILL, so that nothing is tidied up; then a longer training goes on from what lies there."""
    setting, whole = undisturbed
    path = sweep_at(tmp_path, 1, setting=setting)
    code, printed = call(run_killed, path, Fault(place, kill, skip, removing=True), out=tmp_path / "printed")
    assert code == -signal.SIGKILL, printed
    assert not planned(path).runs[0].cells[0].is_done
    assert taken(ran(path)) == [], "the checkpoint or the state is of the last step"
    told = ran(path := sweep_at(tmp_path, 1, 2, 3, setting=setting))
    assert taken(told) == [4, 5, 6, 7, 8, 9] and not told.of(StartedOver)
    weights, losses = outcome(home_of(path))
    expected, all_losses = outcome(whole)
    assert losses == all_losses
    assert weights.items() <= expected.items() and "epoch-3" in weights
    (kept,) = (folder for folder in (home_of(path) / "kept").iterdir() if folder.is_dir())
    assert [folder.name for folder in kept.iterdir()] == ["state"], "no half state is left"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("pattern", ["*/state/*.pt", "*/state/losses.jsonl", "latest.json"])
def test_damaged_state_is_told_and_trained_again(
    base: Path, finished: Path, losses: list[float], tmp_path: Path, damage: Callable[[Path], None], pattern: str
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    with begin(home) as attempt:
        finish(attempt, STEPS)
    damage(next((home / "kept").glob(pattern)))
    with begin(home) as attempt:
        go(tiny_spec(base, 1, 2), attempt, told := Told(), every=None, settled=frozenset({1}))
    assert told.losses == losses
    unsound = pattern != "latest.json" or damage is not Path.unlink
    assert [event.steps for event in told.of(StartedOver)] == ([0] if pattern == "latest.json" else [STEPS]) * unsound


def test_checkpoint_that_is_damaged_gives_way_to_the_state_that_was_kept(
    base: Path, finished: Path, losses: list[float], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    with begin(home) as attempt:
        finish(attempt, STEPS)
    settled = frozenset({1})
    with begin(home) as attempt, pytest.raises(Interrupted):
        go(tiny_spec(base, 1, 2), attempt, told := Told(), stop=lambda: len(told.of(StepDone)) == 1, settled=settled)
    flip(next((home / "resume").glob("*/state/losses.jsonl")))
    with begin(home) as attempt:
        go(tiny_spec(base, 1, 2), attempt, told := Told(), every=None, settled=settled)
    assert told.losses == losses[STEPS:]
    (resumed,) = told.of(Resumed)
    assert resumed.step == STEPS and "losses.jsonl" in resumed.passed_over[0]


def test_state_past_an_epoch_that_is_asked_for_now_stays_for_later_ones(tmp_path: Path) -> None:
    ran(sweep_at(tmp_path, 1, 3))
    told = ran(sweep_at(tmp_path, 2))
    assert taken(told) == [1, 2, 3, 4, 5, 6]
    (over,) = told.of(StartedOver)
    assert "step 9 is past epoch 2" in over.reason
    assert taken(ran(sweep_at(tmp_path, 1, 2, 4))) == [10, 11, 12]


def test_snapshot_that_is_made_again_is_trained_from_the_start(tmp_path: Path) -> None:
    """The state is past it. A longer training beside it goes on without, unless it shall be made again, alone."""
    full = {"setting": "full"}
    path = sweep_at(tmp_path, 1, **full)
    ran(path)
    shutil.rmtree(home_of(path) / "snapshots" / "epoch-1")
    more = {**full, "measures": ["token_length", "layer_change"]}
    sweep_at(tmp_path, 1, 2, **more)
    assert taken(ran(path, lacking=1)) == [4, 5, 6]
    told = ran(path, retrain=True)
    assert taken(told) == [1, 2, 3]
    assert [event.steps for event in told.of(StartedOver)] == [3]
    assert taken(ran(sweep_at(tmp_path, 1, 2, 3, **more))) == [7, 8, 9], "what was kept of the longer one stays"


def test_two_sweeps_extend_one_training(tmp_path: Path) -> None:
    """The one that keeps nothing itself leaves the state of the other alone; ``gc`` asks both."""
    ran(sweep_at(tmp_path, 1))
    other = sweep_at(tmp_path, 2, keep="none", name="other")
    assert taken(ran(other)) == [4, 5, 6]
    path = sweep_at(tmp_path, 1, 3)
    assert taken(ran(path)) == [4, 5, 6, 7, 8, 9]
    plan, ledger = planned(path), Ledger.open(planned(path).root)
    save_last_plan(plan, ledger)
    assert not collect(plan, ledger).waste
    without = planned(sweep_at(tmp_path, 1, 3, keep="none", name="other"))
    found = collect(without, ledger)
    assert not found.waste and "sweep small keeps it (storage.keep_state)" in found.kept[0]
    save_last_plan(planned(sweep_at(tmp_path, 1, 3, keep="none")), ledger)
    found = collect(without, ledger)
    assert [item.kind for item in found.waste] == ["state"]
    remove(found, ledger)
    assert not (home_of(path) / "kept").exists()


def test_state_is_kept_where_a_later_epoch_may_come(tmp_path: Path) -> None:
    """A decaying schedule goes on within its horizon alone."""
    block = {"horizon": 2}
    path = sweep_at(tmp_path, 1, schedule="cosine", block=block)
    ran(path)
    assert (home_of(path) / "kept").exists()
    assert taken(ran(sweep_at(tmp_path, 1, 2, schedule="cosine", block=block))) == [4, 5, 6]
    assert not planned(path).runs[0].trajectory.can_be_extended or planned(path).runs[0].trajectory.epochs == 1
    (kept,) = (place for place in (home_of(path) / "kept").iterdir() if place.is_dir())
    assert "-00000003-" in kept.name, "that of the last epoch of all is not kept"


def test_plan_prices_states_and_what_goes_on_without_one(tmp_path: Path) -> None:
    """Of two epochs one is trained: half of the time with a state, and without it as much again."""
    ran(sweep_at(tmp_path, 1, keep="none"))
    longer = planned(sweep_at(tmp_path, 1, 2, keep="none"))
    without = estimate(longer)
    assert (without.extensions.repeated, without.extensions.epochs) == (1, 1)
    assert without.extensions.again.value == pytest.approx(without.training.value / 2)
    assert "1 training goes on after epochs of which no state was kept" in "\n".join(cost_lines(without))
    shutil.rmtree(longer.root)
    ran(sweep_at(tmp_path, 1))
    further = planned(sweep_at(tmp_path, 1, 2))
    goes_on = estimate(further)
    left = TimeLeft.of(further).seconds(0.0)  # a cell of which token lengths alone are asked takes no time
    assert left == pytest.approx(goes_on.training.value, abs=1e-6)
    assert goes_on.training.value == pytest.approx(without.training.value / 2)
    assert (goes_on.extensions.resumed, goes_on.extensions.repeated) == (1, 0)
    assert "1 training goes on from a checkpoint or a state that was kept" in "\n".join(cost_lines(goes_on))
    (state,) = (place for place in (home_of(longer.sweep.path) / "kept").glob("*/state"))
    held = sum(path.stat().st_size for path in state.rglob("*") if path.name == "plain.pt" or "mp_rank" in path.name)
    assert goes_on.disk is not None and without.disk is not None
    assert goes_on.disk.states == pytest.approx(held, rel=0.2)
    assert goes_on.disk.peak == without.disk.peak + goes_on.disk.states


def test_training_that_is_damaged_is_left_to_do_for_all_who_ask(tmp_path: Path) -> None:
    """What a run schedules, and what is checked beforehand of cluster and disk, is one list."""
    path = sweep_at(tmp_path, 1)
    ran(path)
    plan = planned(sweep_at(tmp_path, 1, measures=["token_length", "layer_change"]))
    ledger = Ledger.open(plan.root)
    assert trainings_left(plan, ledger) == [] and trainings_left(plan, ledger, retrain=True) == list(plan.todo)
    (curve,) = home_of(path).glob("training/*/losses.jsonl")
    flip(curve)
    assert trainings_left(plan, ledger) == list(plan.todo) != []
