"""Exact resume: a training that was interrupted anywhere gives the losses and weights of an undisturbed one."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import shutil
import signal
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import s3_server
from commands import call, end, start_function, torchrun
from resuming import (
    CASE,
    PLACES,
    STEPS,
    Case,
    Crash,
    Told,
    begin,
    crash_after,
    go,
    interrupted,
)  # fmt: skip
from small_memory import SmallMemory
from small_sweep import small_sweep
from tiny_training import make_base, make_samples, make_spec, train

from massive_sft.cli.gc import collect, remove
from massive_sft.core.errors import Interrupted, LeaseLost, Unsupported
from massive_sft.ledger.attempt import Attempt, find_stale_checkpoints
from massive_sft.ledger.manifest import seal_folder
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.models import pretrained
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running import training
from massive_sft.sweep.load import load_sweep
from massive_sft.training.checkpoints import disk, policy
from massive_sft.training.checkpoints.continuity import Continuity, LossJump
from massive_sft.training.checkpoints.disk import CheckpointFacts
from massive_sft.training.checkpoints.policy import Interval, ResumePoint, first_cost_s
from massive_sft.training.divergence import LossCurve
from massive_sft.training.events import CheckpointFailed, CheckpointWritten, Resumed, StartedOver, StepDone
from massive_sft.training.packing import Limit

HERE = Path(__file__).parent

# Each pair of values of any two factors occurs (``test_matrix_covers_every_pair``).
MATRIX = [
    Case(*values)
    for values in [
        (0, "fp32", "full", 1, 1),
        (0, "fp32", "lora", 1, 3),
        (0, "fp32", "lora", 2, 5),
        (0, "fp32", "full", 2, 6),
        (1, "bf16", "lora", 1, 1),
        (1, "fp32", "full", 1, 5),
        (1, "bf16", "full", 2, 3),
        (1, "fp32", "lora", 2, 6),
        (2, "fp32", "full", 1, 3),
        (2, "bf16", "lora", 1, 6),
        (2, "fp32", "lora", 2, 1),
        (2, "bf16", "full", 2, 5),
        (3, "bf16", "full", 1, 6),
        (3, "bf16", "lora", 1, 5),
        (3, "fp32", "full", 2, 1),
        (3, "fp32", "lora", 2, 3),
        ("auto", "fp32", "full", 1, 1),
        ("auto", "bf16", "full", 1, 3),
        ("auto", "fp32", "lora", 1, 5),
        ("auto", "bf16", "lora", 1, 6),
    ]
]
if os.environ.get("RESUME_MATRIX") == "full":  # by hand: all 32, each at every place
    MATRIX = [
        Case(*values)
        for values in product((*range(4), "auto"), ("fp32", "bf16"), ("full", "lora"), (1, 2), PLACES)
        if values[:2] != (0, "bf16") and (values[0], values[3]) != ("auto", 2)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of all weights that a training left, by place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("snapshots/*/*.safe*"))}


def epochs(folder: Path) -> set[str]:
    """The folders of the snapshots that a training left: two workers write several files into one."""
    return {str(Path(place).parent) for place in weights(folder)}


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert losses(folder) == losses(undisturbed)
    assert len(epochs(folder)) == 2
    assert weights(folder) == weights(undisturbed)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def run_orders(orders: Iterable[dict[str, Any]], folder: Path) -> tuple[int, str]:
    """Have two ranks serve orders; return the exit code and what they printed."""
    (folder / "orders.jsonl").write_text("".join(json.dumps(order) + "\n" for order in orders))
    return call(torchrun, HERE / "torchrun_resume.py", folder / "orders.jsonl", out=folder / "printed")


def order(what: str, case: Case, base: Path, folder: Path) -> dict[str, Any]:
    return {"what": what, "spec": case.spec(base).model_dump(), "folder": str(folder), "step": case.step}


# The matrix


def test_matrix_covers_every_pair() -> None:
    factors = [(0, 1, 2, 3, "auto"), ("fp32", "bf16"), ("full", "lora"), (1, 2), PLACES]
    rows = [(case.zero, case.precision, case.method, case.workers, case.step) for case in MATRIX]
    for one, other in combinations(range(len(factors)), 2):
        wanted = set(product(factors[one], factors[other])) - {(0, "bf16"), ("auto", 2)}
        assert {(row[one], row[other]) for row in rows} >= wanted


@pytest.mark.parametrize("case", [case for case in MATRIX if case.workers == 1], ids=lambda case: case.name)
def test_resume_on_one_worker_is_bit_identical(base: Path, tmp_path: Path, case: Case) -> None:
    train(case.spec(base), make_samples(), tmp_path / "undisturbed")
    home = tmp_path / "home"
    interrupted(case.spec(base), home, case.step)
    told = Told()
    with begin(home) as attempt:
        summary = go(case.spec(base), attempt, told, every=None)
    assert_same(attempt.folder, tmp_path / "undisturbed")
    assert told.of(Resumed) == [Resumed(case.step, 1, ())]
    assert told.of(StepDone)[0].step == case.step + 1
    assert summary.resumed == (
        {"attempt": 2, "source": 1, "step": case.step, "repeated": 1, "exact": True, "notes": ()},
    )
    assert (summary.steps, summary.tokens) == (STEPS, 3 * len(make_samples().tokens))


KILLED = Case(3, "fp32", "full", 2, 5)


SHORT = Case(0, "fp32", "full", 2, 6)


EXTENDED = [Case(0, "fp32", "lora", 2, 5), Case(3, "fp32", "full", 2, 1)]  # of the matrix


WIDENED = [Case(2, "bf16", "full", 1, 3), Case(3, "fp32", "lora", 1, 6), Case(0, "fp32", "full", 1, 4)]


MOVED = EXTENDED[0]


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    """What lets processes that are started find a bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.started().environment.items():
            patch.setenv(name, value)
        s3_server.empty(s3_server.started().address)
        yield


@pytest.fixture(scope="module")
def two_workers(base: Path, bucket: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers did: the matrix's cases, one that was killed, and those that one worker had begun."""
    folder = tmp_path_factory.mktemp("two")
    orders = [order("stop", case, base, folder / case.name) for case in MATRIX if case.workers == 2]
    with ExitStack() as held:
        again = []
        for case in WIDENED:
            interrupted(case.spec(base), folder / case.name, case.step)
            hand_over(held.enter_context(begin(folder / case.name)), folder / case.name)
            again.append(order("go on", replace(case, workers=2), base, folder / case.name))
        hand_over(held.enter_context(begin(folder / "killed")), folder / "killed")
        hand_over(held.enter_context(begin(folder / "short")), folder / "short")
        orders += [order("extend", case, base, folder / f"{case.name}-extended") for case in EXTENDED]
        orders.append(order("move", MOVED, base, folder / "moved"))
        (folder / "moved").mkdir()
        orders.append(order("short", SHORT, base, folder / "short"))
        _, printed = run_orders([*orders, order("kill", KILLED, base, folder / "killed")], folder)
        assert "Signal 9 (SIGKILL)" in printed, printed[-3000:]
        code, printed = run_orders([order("go on", KILLED, base, folder / "killed"), *again], folder)
        assert code == 0, printed[-3000:]
    return folder


def hand_over(attempt: Attempt, folder: Path) -> None:
    """Leave an attempt to other processes; this one keeps its lease."""
    (folder / "attempt.pickle").write_bytes(pickle.dumps(attempt))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [case for case in MATRIX if case.workers == 2], ids=lambda case: case.name)
def test_resume_on_two_workers_is_bit_identical(two_workers: Path, case: Case) -> None:
    folder = two_workers / case.name
    assert_same(folder / "home" / "attempts" / "2", folder / "undisturbed")
    entries = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert entries[0] == entries[1]
    assert [(entry["source"], entry["step"]) for entry in entries[0]] == [(1, case.step)]


@pytest.mark.parametrize("case", EXTENDED, ids=lambda case: case.name)
def test_two_workers_go_on_from_a_kept_state_bit_identically(two_workers: Path, case: Case) -> None:
    folder, undisturbed = two_workers / f"{case.name}-extended", two_workers / case.name / "undisturbed"
    assert losses(folder / "attempts" / "2") == losses(undisturbed)
    extended = weights(folder / "attempts" / "2")
    assert extended and extended.items() < weights(undisturbed).items()
    (entry,) = json.loads((folder / "rank-1.json").read_text())
    assert (entry["source"], entry["step"], entry["notes"]) == (1, STEPS // 3, [])


def test_two_workers_whose_ledger_is_a_bucket_go_on_on_another_machine_bit_identically(two_workers: Path) -> None:
    folder = two_workers / "moved"
    assert_same(folder / "attempt-2", two_workers / MOVED.name / "undisturbed")
    (entry,) = json.loads((folder / "rank-1.json").read_text())
    assert (entry["source"], entry["step"], entry["notes"]) == (1, MOVED.step, [])
    for rank in (0, 1):
        assert "must be on one machine" in (folder / f"apart-{rank}").read_text()


def test_two_workers_killed_in_a_step_go_on_in_the_same_attempt_bit_identically(two_workers: Path) -> None:
    same = next(case for case in MATRIX if replace(case, step=KILLED.step) == KILLED)
    assert_same(two_workers / "killed" / "attempts" / "1", two_workers / same.name / "undisturbed")
    (entry,) = json.loads((two_workers / "killed" / "rank-1.json").read_text())
    assert (entry["attempt"], entry["source"], entry["step"]) == (1, 1, 4)
    assert (entry["repeated"], entry["exact"]) == (1, True)


def test_two_workers_short_of_memory_go_on_from_the_checkpoint_with_half_the_micro_batch(two_workers: Path) -> None:
    folder = two_workers / "short"
    assert losses(folder / "attempts" / "1") == pytest.approx(
        losses(two_workers / SHORT.name / "undisturbed"), abs=1e-5
    )
    for rank in (0, 1):
        (entry,) = json.loads((folder / f"rank-{rank}.json").read_text())
        assert (entry["attempt"], entry["source"], entry["step"]) == (1, 1, SHORT.step)
        assert json.loads((folder / f"micro-batch-{rank}.json").read_text()) == {"samples": 1}


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``CASE`` gives when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(CASE.spec(base), make_samples(), folder)
    return folder


# Death


def die_in_the_save_after_step_5(base: Path, folder: Path) -> None:
    """When all is written but the manifest."""
    seal = disk.seal_folder

    def killed(checkpoint: Path) -> Any:
        if "-00000005-" in str(checkpoint):
            os.kill(os.getpid(), signal.SIGKILL)
        return seal(checkpoint)

    disk.seal_folder = killed
    go(CASE.spec(base), begin(folder), Told())


def test_training_killed_in_a_save_goes_on_from_the_checkpoint_before(
    base: Path, tmp_path: Path, undisturbed: Path
) -> None:
    assert end(start_function(die_in_the_save_after_step_5, base, tmp_path)) == -signal.SIGKILL
    assert ["-00000005-" in place for place in find_stale_checkpoints(Folder(tmp_path))] == [True]
    told = Told()
    with begin(tmp_path) as attempt:
        go(CASE.spec(base), attempt, told)
    assert_same(attempt.folder, undisturbed)
    assert [event.step for event in told.of(Resumed)] == [4]
    assert find_stale_checkpoints(Folder(tmp_path)) == []


def test_training_that_dies_again_and_again_still_ends_bit_identically(
    base: Path, tmp_path: Path, undisturbed: Path
) -> None:
    home = tmp_path / "home"
    for step in (1, 2, 4, 8):
        with begin(home) as attempt, pytest.raises(Crash):
            go(CASE.spec(base), attempt, crash_after(step))
    with begin(home) as attempt:
        summary = go(CASE.spec(base), attempt, Told())
    assert_same(attempt.folder, undisturbed)
    assert [(entry["attempt"], entry["source"], entry["step"]) for entry in summary.resumed] == [
        (2, 1, 1), (3, 2, 2), (4, 3, 4), (5, 4, 8)
    ]  # fmt: skip


def test_training_that_ended_before_its_checkpoint_counted_begins_at_the_start(base: Path, tmp_path: Path) -> None:
    with begin(tmp_path) as attempt, pytest.raises(Crash):
        go(CASE.spec(base), attempt, crash_after(3, StepDone), every=None)
    told = Told()
    with begin(tmp_path) as attempt:
        summary = go(CASE.spec(base), attempt, told, every=None)
    assert told.of(Resumed) == told.of(StartedOver) == [] and summary.resumed == ()


# Stopping


@pytest.mark.parametrize("step", [1, 3, 6, 8])
def test_training_asked_to_stop_ends_after_the_step_with_a_checkpoint(
    base: Path, tmp_path: Path, undisturbed: Path, step: int
) -> None:
    told = Told()
    with begin(tmp_path) as attempt, pytest.raises(Interrupted, match=f"after step {step} of 9"):
        go(CASE.spec(base), attempt, told, every=None, stop=lambda: len(told.of(StepDone)) == step - 1)
    assert [event.step for event in told.of(CheckpointWritten)] == [step]
    with begin(tmp_path) as attempt:
        go(CASE.spec(base), attempt, Told(), every=None)
    assert_same(attempt.folder, undisturbed)


def test_training_asked_to_stop_in_its_last_step_is_complete(base: Path, tmp_path: Path, undisturbed: Path) -> None:
    told = Told()
    with begin(tmp_path) as attempt:
        go(CASE.spec(base), attempt, told, every=None, stop=lambda: len(told.of(StepDone)) == STEPS - 1)
    assert_same(attempt.folder, undisturbed)
    assert told.of(CheckpointWritten) == []


# What must not be trusted


def test_checkpoint_of_an_attempt_that_lost_the_lease_is_not_committed(base: Path, tmp_path: Path) -> None:
    """A process that stood still while another attempt took over, and made a checkpoint of its own."""
    took_over = []

    def overtake(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            stale.release()  # as if it had been silent for longer than its ttl
            took_over.append(begin(tmp_path))

    with begin(tmp_path) as stale, pytest.raises(LeaseLost):
        go(CASE.spec(base), stale, Told(overtake))
    assert (tmp_path / "resume" / "latest.json").read_text().count("1-00000003-") == 1
    told = Told()
    go(CASE.spec(base), took_over[0], told)
    assert [event.step for event in told.of(Resumed)] == [3]


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trajectory whose training crashed a step after its checkpoint; tests work on a copy."""
    home = tmp_path_factory.mktemp("stopped")
    interrupted(CASE.spec(base), home, CASE.step)
    return home


@pytest.fixture
def home(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("victim", "damage"),
    [
        ("state/*model_states.pt", "flipped"),
        ("state/*optim_states.pt", "flipped"),
        ("state/*optim_states.pt", "truncated"),
        ("state/rank-0.pt", "flipped"),
        ("state/losses.jsonl", "flipped"),
        ("state/losses.jsonl", "missing"),
        ("state/manifest.json", "truncated"),
        ("state/manifest.json", "missing"),
        ("snapshots/epoch-1/adapter_model.safetensors", "flipped"),
        ("snapshots/epoch-1/snapshot.json", "missing"),
        ("snapshots/epoch-1/snapshot.json", "misspelt"),
        ("../latest.json", "flipped"),
        ("../latest.json", "truncated"),
    ],
)
def test_checkpoint_damaged_is_reported_and_the_training_begins_anew(
    base: Path, home: Path, undisturbed: Path, victim: str, damage: str
) -> None:
    (folder,) = (path for path in (home / "resume").iterdir() if path.is_dir())
    (file,) = folder.glob(victim)
    if damage == "flipped":
        flip(file)
    elif damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "misspelt":
        file.write_bytes(file.read_bytes().replace(b'"sha256"', b'"sha257"'))
    else:
        file.unlink()
    told = crash_after(2)
    with begin(home) as attempt, pytest.raises(Crash):
        go(CASE.spec(base), attempt, told)
    assert len(told.of(StartedOver)) == 1 and told.of(Resumed) == []
    assert told.losses == losses(undisturbed)[:2]


def test_checkpoint_past_an_epoch_that_is_asked_for_since_is_not_used(base: Path, tmp_path: Path) -> None:
    interrupted(CASE.spec(base), tmp_path, 6)
    wider = CASE.spec(base).model_copy(update={"snapshots": (1, 2, 3)})
    told = Told()
    with begin(tmp_path) as attempt:
        summary = go(wider, attempt, told)
    assert "epoch 2" in told.of(StartedOver)[0].reason
    assert sorted(summary.snapshots) == [1, 2, 3]
    assert [(entry["source"], entry["step"]) for entry in summary.resumed] == [(None, 0)]


def test_checkpoint_of_a_run_that_goes_on_longer_now_is_used(base: Path, tmp_path: Path) -> None:
    short = make_spec(base, (1, 2), layout={"zero": 1})
    longer = short.model_copy(update={"snapshots": (1, 2, 3), "horizon": 3})
    train(longer, make_samples(), tmp_path / "undisturbed")
    interrupted(short, tmp_path / "home", 4)
    with begin(tmp_path / "home") as attempt:
        go(longer, attempt, Told())
    assert losses(attempt.folder) == losses(tmp_path / "undisturbed")
    assert weights(attempt.folder) == weights(tmp_path / "undisturbed")


def test_repeated_loss_that_differs_by_one_bit_is_an_error(base: Path, home: Path) -> None:
    path = home / "attempts" / "1" / "losses.jsonl"
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1])
    last["loss"] += 1e-12
    path.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    with begin(home) as attempt, pytest.raises(LossJump, match="bit by bit"):
        go(CASE.spec(base), attempt, Told())


@pytest.mark.parametrize(
    ("before", "now", "jumps"), [(0.005, 0.014, False), (0.005, 0.016, True), (4.0, 4.07, False), (4.0, 4.09, True)]
)
def test_repeated_loss_may_differ_by_2_percent_or_a_hundredth_of_a_nat(
    tmp_path: Path, before: float, now: float, jumps: bool
) -> None:
    """A loss near 0, in the tenth epoch of a small set, differs by more than 2 % for the rounding of bf16 alone."""
    facts = CheckpointFacts(1, 10, "", {}, {}, {})
    start = ResumePoint(tmp_path, facts, (), {11: before}, ("layout: zero was 1, is 2",), strict=False, convert=False)
    done = StepDone(11, 1, now, 1e-3, 1.0, 10, 5, 0.1)
    with pytest.raises(LossJump, match="nats") if jumps else nullcontext():
        Continuity(start, 2).check(done, LossCurve(20, 97), Limit(samples=2))


@pytest.mark.parametrize("short_before", [True, False])
def test_repeated_loss_of_another_micro_batch_may_differ_in_its_last_bits(
    base: Path, tmp_path: Path, short_before: bool
) -> None:
    """Memory runs out in the step after the checkpoint, before the crash or when that step is repeated."""
    spec = make_spec(base, (3,), layout={"zero": "auto", "micro_batch": 4}, lr=1e-2)
    with SmallMemory(rows=2, passes=4) if short_before else nullcontext():
        interrupted(spec, tmp_path, 4)
    told = Told()
    with begin(tmp_path) as attempt, nullcontext() if short_before else SmallMemory(rows=2):
        summary = go(spec, attempt, told)
    assert summary.steps == STEPS and summary.resumed[0]["exact"] is False
    note = "micro-batch: was {'samples': 4}, {'samples': 2} after step 4, where memory ran out"
    assert told.of(Resumed)[0].notes == ((note,) if short_before else ())


def test_checkpoint_of_an_engine_with_other_last_bits_goes_on_and_says_so(
    base: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "ENGINE", policy.ENGINE + 1)
    told = Told()
    with begin(home) as attempt:
        go(CASE.spec(base), attempt, told)
    assert any("engine was" in note for note in told.of(Resumed)[0].notes)


def test_loss_that_jumps_after_a_resume_is_an_error(base: Path, tmp_path: Path) -> None:
    """Without a repeated step: the curve before it is all there is to compare with."""
    spec = make_spec(base, (6,), layout={"zero": 1}, lr=1e-2)
    told = Told()
    with begin(tmp_path) as attempt, pytest.raises(Interrupted):
        go(spec, attempt, told, every=None, stop=lambda: len(told.of(StepDone)) == 14)
    (folder,) = (path for path in (tmp_path / "resume").iterdir() if path.is_dir())
    lower_losses(folder / "state")
    with begin(tmp_path) as attempt, pytest.raises(LossJump, match="at most"):
        go(spec, attempt, Told())


@pytest.mark.parametrize(
    ("losses", "written_after", "jumps"),
    [
        ([9.0, 1.0, 9.0, 9.0, 9.0], (2, 3, 4, 5), False),  # a batch that is hard for sound weights
        ([9.0, 9.0, 9.0, 9.0, 1.0], (5,), False),
        ([9.0, 9.0, 9.0, 9.0, 9.0], (), True),
        ([9.0, 9.0], (2,), True),  # a snapshot, a checkpoint or a verdict would rest on lost weights
        ([math.inf], (1,), True),
    ],
)
def test_loss_after_a_resume_may_be_high_where_one_of_five_is_not(
    tmp_path: Path, losses: list[float], written_after: tuple[int, ...], jumps: bool
) -> None:
    start = ResumePoint(tmp_path, CheckpointFacts(1, 10, "", {}, {}, {}), (), {}, (), strict=True, convert=False)
    continuity, curve = Continuity(start, 2), LossCurve(100, 32000)
    for step in range(10):
        curve.add(1 + 0.1 * (step % 2), 1.0)
    with pytest.raises(LossJump, match="at most") if jumps else nullcontext():
        for taken, loss in enumerate(losses, 1):
            done = StepDone(10 + taken, 1, loss, 1e-3, 1.0, 10, 5, 0.1)
            continuity.check(done, curve, Limit(samples=2))
            curve.add(loss, 1.0)
            if taken in written_after:
                continuity.confirm()


def lower_losses(state: Path) -> None:
    """Pretend that the losses before a checkpoint were 10 nats lower, and seal it again."""
    lines = [json.loads(line) for line in (state / "losses.jsonl").read_text().splitlines()]
    for line in lines:
        line["loss"] -= 10
    (state / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (state / "manifest.json").unlink()
    seal_folder(state)


def test_checkpoint_that_cannot_be_written_is_reported_and_training_goes_on(
    base: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """A file stands where the folder should be, as a full disk would stand in the way."""

    def obstruct(event: Any) -> None:
        if not (tmp_path / "resume").exists():
            (tmp_path / "resume").write_text("")

    told = Told(obstruct)
    with begin(tmp_path) as attempt:
        go(CASE.spec(base), attempt, told)
    assert [event.step for event in told.of(CheckpointFailed)] == list(range(1, STEPS))
    assert_same(attempt.folder, undisturbed)


# Other layouts


@pytest.mark.parametrize(
    "layout", [{"micro_batch": 1}, {"packing": True}, {"gradient_checkpointing": True}, {"attention": "eager"}], ids=str
)
def test_resume_with_another_way_of_computing_goes_on_and_says_so(
    base: Path, home: Path, undisturbed: Path, layout: dict[str, Any]
) -> None:
    told = Told()
    with begin(home) as attempt:
        summary = go(CASE.spec(base, **layout), attempt, told)
    (resumed,) = told.of(Resumed)
    assert next(iter(layout)) in resumed.notes[0]
    assert summary.resumed[0]["exact"] is not None and summary.resumed[0]["notes"] == resumed.notes
    assert losses(attempt.folder)[:4] == losses(undisturbed)[:4]


@pytest.mark.parametrize(
    ("zero", "layout", "precision", "method"),
    [
        (1, {"zero": 2}, "bf16", "full"),
        (2, {"zero": 1}, "fp32", "lora"),
        (1, {"offload": "optimizer"}, "fp32", "lora"),
        (3, {"offload": "optimizer"}, "fp32", "full"),
        (1, {"zero": "auto"}, "bf16", "full"),
        (2, {"zero": "auto"}, "fp32", "lora"),
    ],
    ids=str,
)
def test_resume_at_another_stage_goes_on_with_the_same_state(
    base: Path, tmp_path: Path, zero: int, layout: dict[str, Any], precision: str, method: str
) -> None:
    case = Case(zero, precision, method, 1, 4)
    before = interrupted(case.spec(base), tmp_path, case.step)
    told = Told()
    with begin(tmp_path) as attempt:
        summary = go(case.spec(base, **layout), attempt, told)
    assert summary.steps == STEPS
    assert told.losses[0] == pytest.approx(before.losses[case.step], rel=1e-6)  # one stage computes as the other
    assert next(iter(layout)) in summary.resumed[0]["notes"][0]


@pytest.mark.parametrize(("zero", "now"), [(0, 1), (1, 0), (1, 3), (3, 2), ("auto", 1), (0, "auto"), (3, "auto")])
def test_resume_at_a_stage_that_cannot_be_converted_is_refused_with_the_remedy(
    base: Path, tmp_path: Path, zero: int | str, now: int | str
) -> None:
    case = Case(zero, "fp32", "full", 1, 2)
    interrupted(case.spec(base), tmp_path, case.step)
    with begin(tmp_path) as attempt, pytest.raises(Unsupported, match=f"set zero: {zero} again, or remove"):
        go(case.spec(base, zero=now), attempt, Told())
    told = Told()
    with begin(tmp_path) as attempt:
        go(case.spec(base), attempt, told)
    assert [event.step for event in told.of(Resumed)] == [2]


@pytest.mark.parametrize("case", WIDENED, ids=lambda case: case.name)
def test_resume_on_two_workers_of_what_one_began(two_workers: Path, case: Case) -> None:
    folder = two_workers / case.name
    one, two = (losses(folder / "attempts" / str(number)) for number in (1, 2))
    assert two[: case.step] == one[: case.step] and len(two) == STEPS
    (entry,) = json.loads((folder / "rank-1.json").read_text())
    assert "workers was 1, is 2" in entry["notes"][0]
    if case.method == "full":  # of an adapter the dropout differs
        assert two[case.step] == pytest.approx(one[case.step], rel=1e-2)


@pytest.mark.parametrize(
    ("case", "zero"),
    [
        (case, zero)
        for case in MATRIX
        if case.workers == 2 and case.method == "full" and case.zero != 2
        for zero in ((None, "auto") if case.zero == 1 else (None,))
    ],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_resume_on_one_worker_of_what_two_began(
    base: Path, two_workers: Path, tmp_path: Path, case: Case, zero: str | None
) -> None:
    shutil.copytree(two_workers / case.name / "home", tmp_path / "home")
    with begin(tmp_path / "home") as attempt:
        go(replace(case, workers=1, zero=zero or case.zero).spec(base), attempt, Told())
    undisturbed = losses(two_workers / case.name / "undisturbed")
    assert losses(attempt.folder)[: case.step + 2] == pytest.approx(undisturbed[: case.step + 2], rel=1e-2)
    assert len(epochs(attempt.folder)) == 2


# Upkeep


def test_checkpoints_leave_one_at_a_time_and_keep_snapshots_without_copying_them(base: Path, tmp_path: Path) -> None:
    with begin(tmp_path) as attempt, pytest.raises(Crash):
        go(CASE.spec(base), attempt, crash_after(7))
    assert sorted(path.name.split("-")[1] for path in (tmp_path / "resume").iterdir() if path.is_dir()) == ["00000007"]
    (linked,) = (tmp_path / "resume").glob("*/snapshots/epoch-1/adapter_model.safetensors")
    assert linked.samefile(attempt.folder / "snapshots" / "epoch-1" / "adapter_model.safetensors")


@pytest.mark.parametrize("zero", ["auto", 0, 1, 2])
def test_resumed_training_leaves_no_model_in_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int | str
) -> None:
    load = pretrained.load_model
    loaded = []

    def remember(*arguments: Any) -> Any:
        model = load(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(pretrained, "load_model", remember)
    spec = make_spec(base, (1,), layout={"zero": zero})
    told = Told()
    with begin(tmp_path) as attempt, pytest.raises(Interrupted):
        go(spec, attempt, told, stop=lambda: len(told.of(StepDone)) == 1)
    with begin(tmp_path) as attempt:
        go(spec, attempt, Told())
    gc.collect()
    assert [model() for model in loaded] == [None, None]


def test_stage_stopped_and_resumed_publishes_once_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(small_sweep(tmp_path, storage={"root": str(tmp_path / "ledger"), "resume_every": 0})))
    ledger, run = Ledger.open(plan.root), plan.todo[0]
    home = ledger.trajectory_dir(run.trajectory.id)
    told = Told()
    with begin(home) as attempt, pytest.raises(Interrupted):
        training.train(run, ledger, attempt, told, stop=lambda: len(told.of(StepDone)) == 3)
    assert len(told.of(CheckpointWritten)) == 4, "resume_every reaches the training"
    (home / "resume" / "1-00000009-dead").mkdir()
    assert {item.path for item in collect(plan, ledger).waste} == {
        home / "resume" / "1-00000009-dead", attempt.folder / "snapshots"
    }  # fmt: skip
    with begin(home) as attempt:
        training.train(run, ledger, attempt, Told())
        outcome = json.loads((home / "training" / "attempt-2" / "training.json").read_text())
        assert [(entry["source"], entry["step"]) for entry in outcome["run"]["resumed"]] == [(1, 4)]
        assert not (home / "resume").exists()
        again = Told()
        training.train(run, ledger, attempt, again)  # its process was killed before it could say that it is done
        assert again.events == []
    (home / "resume").mkdir()
    assert [item.path for item in collect(plan, ledger).waste] == [home / "resume"]


def test_checkpoint_beyond_what_is_asked_for_stays_for_whoever_asks_for_more(tmp_path: Path) -> None:
    storage = {"root": str(tmp_path / "ledger"), "resume_every": 0}
    settings = {"defaults": {"max_length": 128, "batch": 8}, "full": {"method": "full", "lr": 1e-3}}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant", "horizon": 2}

    def planned(*snapshots: int, **defaults: Any) -> Plan:
        edited = {**settings, "defaults": {**settings["defaults"], **defaults}}
        blocks = [block | {"snapshots": list(snapshots)}]
        return make_plan(load_sweep(small_sweep(tmp_path, storage=storage, settings=edited, blocks=blocks)))

    wide = planned(1, 2)
    ledger, run = Ledger.open(wide.root), wide.todo[0]
    home, told = ledger.trajectory_dir(run.trajectory.id), Told()
    with begin(home) as attempt, pytest.raises(Interrupted):
        training.train(run, ledger, attempt, told, stop=lambda: len(told.of(StepDone)) == 4)
    with begin(home) as attempt:
        training.train(planned(1).todo[0], ledger, attempt, Told())
    assert (home / "snapshots" / "epoch-1").is_dir()
    assert [item.path for item in collect(wide, ledger).waste if item.kind == "resume"] == []
    # LoRA's rank says nothing of full tuning.
    edited, told = planned(1, 2, lora={"rank": 8}).todo[0], Told()
    assert edited.trajectory.id == run.trajectory.id
    with begin(home) as attempt:
        training.train(edited, ledger, attempt, told)
    assert [event.step for event in told.of(Resumed)] == [5] and told.of(StartedOver) == []
    assert not (home / "resume").exists()


def test_checkpoint_of_an_extension_is_no_waste(tmp_path: Path) -> None:
    storage = {"root": str(tmp_path / "ledger"), "resume_every": 0}
    plan = make_plan(load_sweep(small_sweep(tmp_path, storage=storage)))
    ledger, run = Ledger.open(plan.root), plan.todo[0]
    home, told = ledger.trajectory_dir(run.trajectory.id), Told()
    with begin(home) as attempt:
        training.train(
            replace(run, trajectory=replace(run.trajectory, cells=run.trajectory.cells[:1])), ledger, attempt, told
        )
    (home / "resume").mkdir()
    seen_before = collect(plan, ledger)
    assert [item.path for item in seen_before.waste] == [home / "resume"]
    with begin(home) as attempt, pytest.raises(Interrupted):
        training.train(run, ledger, attempt, told, stop=lambda: len(told.of(StepDone)) == 3 + 2)
    assert [item.path for item in collect(plan, ledger).waste if item.kind == "resume"] == []
    assert remove(seen_before, ledger).waste == ()
    told = Told()
    with begin(home) as attempt:
        training.train(run, ledger, attempt, told)
    assert [event.step for event in told.of(Resumed)] == [3]


def test_adapter_checkpoint_holds_no_frozen_weights(base: Path, tmp_path: Path) -> None:
    sizes = {}
    for method in ("full", "lora"):
        spec = Case(2, "fp32", method, 1, 4).spec(base)
        told = interrupted(spec, tmp_path / method, 4)
        sizes[method] = told.of(CheckpointWritten)[-1].bytes
    assert sizes["lora"] < sizes["full"] / 2


def test_interval_is_two_minutes_or_twenty_times_the_cost_unless_it_is_said() -> None:
    assert [Interval(None, 0.0, cost).due(119.9, math.inf) for cost in (0.0, 5.0, 10.0)] == [False, False, False]
    assert [Interval(None, 0.0, cost).due(120.0, math.inf) for cost in (0.0, 6.0, 6.1)] == [True, True, False]
    assert Interval(0.0, 5.0, 100.0).due(5.0, 0.0)
    assert not Interval(30.0, 5.0).due(34.9, math.inf) and Interval(30.0, 5.0, 100.0).due(35.0, 0.0)


def test_checkpoint_is_skipped_where_the_training_ends_before_it_pays() -> None:
    assert [Interval(None, 0.0, 6.0).due(120.0, left_s) for left_s in (119.9, 120.0)] == [False, True]
    adapter, seven_billion = first_cost_s(40_000_000, 1), first_cost_s(7_000_000_000, 8)
    assert Interval(None, 0.0, adapter).due(120.0, 60.0), "of an adapter of 8B parameters, before one was written"
    assert not Interval(None, 0.0, seven_billion).due(120.0, math.inf)
