"""What a training leaves in the ledger, and how it is found again. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.errors import Corrupt, MassiveSFTError
from massive_sft.files import read_json
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.store import Ledger
from massive_sft.plan import RunPlan

OUTCOME = "training.json"
LOSSES = "losses.jsonl"


class SnapshotGone(MassiveSFTError):
    """A finished training's snapshot is needed again, but was removed under the retention policy."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: ``training/epoch-<n>`` of the trajectory: the loss curve and the outcome.
        outcome: what ``training.json`` holds: ``attempt``, ``summary``, ``counts``, ``layout`` and, by epoch as text,
            ``diverged``: the reason, or an empty text.
        files: SHA-256 by path below the storage root.
    """

    folder: Path
    outcome: Mapping[str, Any]
    files: Mapping[str, str]

    def diverged(self, epoch: int) -> str:
        """Return why the run had diverged by this epoch; empty when it had not.

        Judged on the losses up to the epoch alone, so that a cell's status never depends on how far its run went on.
        """
        return str(self.outcome["diverged"][str(epoch)])


def find_trained(ledger: Ledger, run: RunPlan) -> Trained | None:
    """Return the finished training that covers a run's snapshots, if there is one; an unsound one does not count."""
    home = ledger.trajectory_dir(run.trajectory.id)
    for folder in sorted((home / "training").glob("epoch-*"), key=lambda path: path.name):
        try:
            hashes = verify_folder(folder)
            outcome = read_json(folder / OUTCOME)
        except (Corrupt, FileNotFoundError) as error:
            ledger.report(folder, str(error))
            continue
        if all(str(epoch) in outcome["diverged"] for epoch in run.trajectory.snapshots):
            return Trained(
                folder, outcome, {f"{folder.relative_to(ledger.root)}/{name}": h for name, h in hashes.items()}
            )
    return None


def snapshot_folder(ledger: Ledger, trajectory: str, epoch: int) -> Path:
    """Return where a snapshot is published."""
    return ledger.trajectory_dir(trajectory) / "snapshots" / f"epoch-{epoch}"


def find_snapshot(ledger: Ledger, trajectory: str, epoch: int) -> tuple[Path, dict[str, str]] | None:
    """Return a published snapshot that matches its manifest, with its hashes by file; None when there is none."""
    folder = snapshot_folder(ledger, trajectory, epoch)
    if not folder.is_dir():
        return None
    try:
        return folder, verify_folder(folder)
    except Corrupt as error:
        ledger.report(folder, str(error))
        return None


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a loss curve; a number that is not finite stands there as text (``nan``, ``inf``)."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def remove_snapshot(ledger: Ledger, run: RunPlan, epoch: int) -> None:
    """Remove a published snapshot that the retention policy does not keep."""
    found: Path = ledger.trajectory_dir(run.trajectory.id) / "snapshots" / f"epoch-{epoch}"
    if found.is_dir():
        doomed = found.with_name(f".{found.name}.removed")
        found.rename(doomed)  # at once, so that nobody reads half a snapshot
        for path in sorted(doomed.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        doomed.rmdir()
