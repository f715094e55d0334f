"""Run under torchrun by ``test_resume``: two ranks serve the orders of each line of argv[1]."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from pathlib import Path

import s3_server
import torch
import torch.distributed as dist
from resuming import SAMPLES, Told, begin, finish, go, kill_at
from small_memory import SmallMemory
from tiny_training import make_samples

from massive_sft.core.errors import Interrupted, TrainAgain, Unsupported
from massive_sft.core.stop import never_stop
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.running.training import require_shared_folder
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.events import StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.ranks import broadcast_from_rank0, is_rank0
from massive_sft.training.summary import TrainingSummary


def stop_and_go_on(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Train undisturbed, then stopped after a step and gone on with in another attempt."""
    train_trajectory(spec, make_samples(SAMPLES), folder / "undisturbed", lambda event: None)
    told = Told()
    attempt = broadcast_from_rank0(lambda: begin(folder / "home"))
    try:
        go(spec, attempt, told, every=None, stop=lambda: len(told.of(StepDone)) == step - 1)
    except Interrupted:
        attempt.release()
    attempt = broadcast_from_rank0(lambda: begin(folder / "home"))
    keep(folder, go(spec, attempt, Told(), every=None))
    attempt.release()


def move(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Train with a ledger in a bucket until after a step, and go on with an empty disk, as another machine."""
    home, told = BucketRoot(s3_server.BUCKET, folder.name), Told()
    for machine, stop in enumerate((lambda: len(told.of(StepDone)) == step - 1, never_stop)):
        os.environ["MASSIVE_SFT_CACHE"] = str(folder / f"machine-{machine}")
        dist.barrier()
        attempt = broadcast_from_rank0(lambda: begin(home))
        require_shared_folder(attempt)
        with contextlib.suppress(Interrupted):
            keep(folder, go(spec, attempt, told, every=None, stop=stop))
        if is_rank0():
            attempt.folder.rename(folder / f"attempt-{attempt.number}")
        attempt.release()
    os.environ["MASSIVE_SFT_CACHE"] = str(folder / f"machine of rank {dist.get_rank()}")
    try:
        require_shared_folder(attempt)
    except Unsupported as error:
        (folder / f"apart-{dist.get_rank()}").write_text(str(error))


def extend(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Train to the first snapshot alone and keep the state; go on from it in another attempt."""
    short = spec.model_copy(update={"snapshots": spec.snapshots[:1]})
    attempt = broadcast_from_rank0(lambda: begin(folder))
    steps = go(short, attempt, Told(), every=None, keeps_state=True).steps
    broadcast_from_rank0(lambda: finish(attempt, steps))
    attempt.release()
    attempt = broadcast_from_rank0(lambda: begin(folder))
    keep(folder, go(spec, attempt, Told(), every=None, settled=frozenset(short.snapshots)))
    attempt.release()


def run_short(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Run out of memory in the step after ``step`` on both ranks, in an attempt whose lease the test holds; go on."""
    attempt = pickle.loads((folder / "attempt.pickle").read_bytes())
    with SmallMemory(rows=1, passes=step), contextlib.suppress(TrainAgain):
        go(spec, attempt, Told())
        raise AssertionError("there was memory")
    keep(folder, go(spec, attempt, Told()))


def be_killed(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Have rank 0 killed after a step, in an attempt whose lease the test holds."""
    go(spec, pickle.loads((folder / "attempt.pickle").read_bytes()), kill_at(step, StepDone))


def go_on(spec: TrainingSpec, folder: Path, step: int) -> None:
    """Go on in the attempt that was killed."""
    keep(folder, go(spec, pickle.loads((folder / "attempt.pickle").read_bytes()), Told()))


def keep(folder: Path, summary: TrainingSummary) -> None:
    """Keep how a training went on this rank."""
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps([dict(entry) for entry in summary.resumed]))
    (folder / f"micro-batch-{dist.get_rank()}.json").write_text(json.dumps(dict(summary.micro_batch)))


SERVE = {"stop": stop_and_go_on, "move": move, "extend": extend, "short": run_short, "kill": be_killed, "go on": go_on}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in Path(sys.argv[1]).read_text().splitlines():
        order = json.loads(line)
        SERVE[order["what"]](TrainingSpec.model_validate(order["spec"]), Path(order["folder"]), order["step"])
    dist.destroy_process_group()
