"""What of a training counts, and from when: each snapshot once its epoch ends, the outcome of the whole at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from massive_sft.core.files import read_json, write_json
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.mixture import Counts
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.loss_curve import LOSSES, read_steps
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import RunPlan
from massive_sft.running.outcome import OUTCOME, find_trained, find_trainings, has_snapshot, snapshot_key
from massive_sft.sweep.unchanged_files import require_same_model
from massive_sft.training import snapshot
from massive_sft.training.checkpoints.disk import link_folder
from massive_sft.training.divergence import window_of
from massive_sft.training.events import StepDone
from massive_sft.training.summary import TrainingSummary


@dataclass(frozen=True)
class Publisher:
    """Publishes a training on rank 0. Its snapshots stay in the attempt too, as hard links, for its checkpoints.

    Those of a run with ``snapshots`` are uploaded there first; the ledger then holds what says so in their place.

    A snapshot and what its training up to there gave are a pair of one attempt: once both are published, a later
    attempt keeps both. A snapshot without the other was left by a process that was killed between the two; nothing
    rests on it yet, so one that differs gives way. Of one that was removed and is made again, with other bits than
    before, the training comes first: ``training/epoch-<n>-<snapshot>``. So a snapshot that is there is never without.

    Attributes:
        run: what is trained.
        ledger: where it is published.
        attempt: the right to.
        counts: of its samples.
        cost: returns what it took so far: ``wall_seconds``, ``peak_bytes``, ``device``.
    """

    run: RunPlan
    ledger: Ledger
    attempt: Attempt
    counts: Counts
    cost: Callable[[], Mapping[str, Any]]
    _published: set[int] = field(default_factory=set)

    def publish_epoch(self, epoch: int, summary: TrainingSummary) -> bool:
        """Publish an epoch's snapshot, then ``training/epoch-<n>``; the last one's comes with the outcome.

        Training may be further meanwhile. Returns whether the epoch counts now, and can be scored.

        Raises:
            InvalidInput: the base model is no longer the one that was planned; nothing was published.
            LeaseLost: another attempt owns the trajectory; likewise.
            OSError: the disk refuses.
        """
        if epoch == self.run.trajectory.epochs:
            return False
        recipe = self.run.trajectory.recipe
        require_same_model(recipe.model, recipe.parts["base"])
        self._snapshot(epoch, summary)
        if find_trained(self.ledger, self.run.trajectory.id, epoch) is None:
            self._outcome(f"training/epoch-{epoch}", summary, {epoch: summary.diverged[epoch]})
        return True

    def publish_outcome(self, summary: TrainingSummary) -> None:
        """Publish the snapshots that are left, then ``training/attempt-<n>`` with all epochs.

        Raises LeaseLost, OSError, as ``publish_epoch``.
        """
        for epoch in sorted(summary.snapshots.keys() - self._published):
            self._snapshot(epoch, summary)
        self._outcome(outcome_place(self.attempt), summary, summary.diverged)
        (self.attempt.folder / LOSSES).unlink()  # it is published now

    def _snapshot(self, epoch: int, summary: TrainingSummary) -> None:
        place = snapshot_key(epoch)
        trajectory = self.run.trajectory
        self.ledger.write_spec(trajectory.id, {key: json.loads(text) for key, text in trajectory.recipe.parts.items()})
        own, there = self.attempt.folder / place, self.attempt.storage.fetch(place)
        trainings = list(find_trainings(self.ledger, trajectory.id, epoch))
        if there.is_dir():
            counts = trainings or _are_equal(own, there)
            if counts and has_snapshot(self.ledger, trajectory.id, epoch):
                self._published.add(epoch)
                return
            self.attempt.set_aside(place)
        content = {snapshot.NAME: hash_file(own / snapshot.NAME)}
        if trainings and not any(trained.gave(epoch, content) for trained in trainings):
            self._outcome(
                f"training/epoch-{epoch}-{content[snapshot.NAME][:8]}", summary, {epoch: summary.diverged[epoch]}
            )
        finished = self.attempt.folder / f"epoch-{epoch}"
        link_folder(own, finished)
        hashes = {name: file["sha256"] for name, file in read_json(own / snapshot.NAME)["files"].items()}
        if self.run.snapshots is None:
            self.attempt.publish(place, finished, hashes)
        else:
            self.attempt.publish_stored(place, finished, Bucket.of(self.run.snapshots), snapshot.NAME, hashes)
        self._published.add(epoch)

    def _outcome(self, place: str, summary: TrainingSummary, diverged: Mapping[int, str]) -> None:
        folder = self.attempt.folder / "outcome"
        folder.mkdir(exist_ok=True)
        with (self.attempt.folder / LOSSES).open() as losses, (folder / LOSSES).open("w") as up_to_here:
            up_to_here.writelines(islice(losses, summary.steps))
        outcome: dict[str, Any] = {
            "schema": 1,
            "attempt": self.attempt.number,
            "counts": self.counts.model_dump(mode="json"),
            "layout": self.run.layout.model_dump(mode="json"),
            "run": {**_run_facts(summary), **self.cost()},
            "epochs": _epochs(list(read_steps(folder / LOSSES)), diverged),
        }
        for epoch in diverged:  # not each: the state that it went on from may be beyond some
            own = self.attempt.folder / snapshot_key(epoch) / snapshot.NAME
            if own.is_file():
                outcome["epochs"][str(epoch)]["snapshot"] = hash_file(own)
        write_json(folder / OUTCOME, outcome)
        self.attempt.publish(place, folder)


def outcome_place(attempt: Attempt) -> str:
    """Return where an attempt publishes the outcome of a finished training, below the trajectory."""
    return f"training/attempt-{attempt.number}"


def _are_equal(one: Path, other: Path) -> bool:
    """Return whether two snapshots are of the same files, by the hashes that they state."""
    try:
        return (one / snapshot.NAME).read_bytes() == (other / snapshot.NAME).read_bytes()
    except FileNotFoundError:
        return False


def _run_facts(summary: TrainingSummary) -> dict[str, Any]:
    """Return what is true of the run so far rather than of a snapshot along it."""
    return {
        "parameters": summary.parameters,
        "trained_parameters": summary.trained_parameters,
        "micro_batch": summary.micro_batch,
        "attention": summary.attention,
        "kernels": summary.kernels,
        "gradient_checkpointing": summary.gradient_checkpointing,
        "head": summary.head,
        "run_steps": summary.steps,
        "run_seconds": summary.seconds,
        "resumed": [dict(entry) for entry in summary.resumed],
    }


def _epochs(losses: Sequence[StepDone], diverged: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Return, by snapshot epoch as text, what training up to there took and gave; ``diverged`` is empty or why."""
    epochs = {}
    for epoch, reason in diverged.items():
        steps = [done for done in losses if done.epoch <= epoch]
        values = [done.loss for done in steps]
        window = window_of(len(steps))
        epochs[str(epoch)] = {
            "diverged": reason,
            "steps": len(steps),
            "tokens": sum(done.tokens for done in steps),
            "trainable_tokens": sum(done.trainable_tokens for done in steps),
            "seconds": sum(done.seconds for done in steps),
            "first_loss": _finite(fmean(values[:window])),
            "last_loss": _finite(fmean(values[-window:])),
        }
    return epochs


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
