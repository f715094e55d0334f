"""What a training leaves in the ledger, and how it is found again. Imports nothing heavy."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import read_json
from massive_sft.ledger.attempt import LATEST, RESUME
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.snapshot_store import open_folder, remove_folder, verify_stored
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger

log = logging.getLogger(__name__)

OUTCOME = "training.json"
SNAPSHOT = "snapshot.json"  # as ``training.snapshot`` writes it, which is heavy


@dataclass(frozen=True)
class Trained:
    """A training that is finished, or has come to a snapshot.

    Attributes:
        folder: one of ``Ledger.training_dirs``: the loss curve and the outcome.
        outcome: what ``training.json`` holds: ``attempt``, ``counts``, ``layout``, facts of the ``run`` so far, and by
            snapshot epoch (as text) under ``epochs`` what training up to there took and gave: among it, where this
            attempt wrote it, the ``snapshot``, as the SHA-256 of its ``snapshot.json``.
        files: SHA-256 by path below the storage root.
    """

    folder: Path
    outcome: Mapping[str, Any]
    files: Mapping[str, str]

    def diverged(self, epoch: int) -> str:
        """Return why the run had diverged by this epoch, judged on the losses up to it; empty when it had not."""
        return str(self.outcome["epochs"][str(epoch)]["diverged"])

    def summary(self, epoch: int) -> dict[str, Any]:
        """Return what a record of this epoch says of its training."""
        told = self.outcome["epochs"][str(epoch)].items()
        own = {key: value for key, value in told if key not in ("diverged", "snapshot")}
        return {**own, **self.outcome["run"], "layout": self.outcome["layout"]}

    def gave(self, epoch: int, snapshot: Mapping[str, str]) -> bool:
        """Return whether a snapshot of an epoch, by its files' SHA-256, is known to be of this training.

        So is one that another attempt wrote, if it is the same bit by bit.
        """
        return bool(self.outcome["epochs"][str(epoch)].get("snapshot") == snapshot[SNAPSHOT])


def find_trained(ledger: Ledger, trajectory: str, epoch: int) -> Trained | None:
    """Return the training of a trajectory up to an epoch that counts, if there is one; an unsound one does not."""
    return next(find_trainings(ledger, trajectory, epoch), None)


def find_trainings(ledger: Ledger, trajectory: str, epoch: int) -> Iterator[Trained]:
    """Yield all sound trainings up to an epoch: of more than one where a removed snapshot was made again."""
    for folder in ledger.training_dirs(trajectory):
        try:
            hashes = verify_folder(folder)
            outcome = read_json(folder / OUTCOME)
        except (Corrupt, FileNotFoundError) as error:
            ledger.report_corrupt(folder, str(error))
            continue
        if str(epoch) in outcome["epochs"]:
            yield Trained(
                folder, outcome, {f"{folder.relative_to(ledger.root)}/{name}": h for name, h in hashes.items()}
            )


def has_spent_checkpoint(trajectory: Root) -> bool:
    """Return whether no training goes on from the checkpoint of a trajectory, by its place, if there is one.

    Its writer, or a later attempt, published the outcome of as many steps. A checkpoint beyond the published epochs is
    what a request for more of them goes on from, and so is one of a later attempt.
    """
    try:
        text = json.loads(trajectory.get(f"{RESUME}/{LATEST}").data)["name"].split("-")[:2]
        writer, step = map(int, text)
    except FileNotFoundError:
        return True
    except (KeyError, TypeError, AttributeError, ValueError):
        return False  # which the next training reports
    for place in (item.name for item in trajectory.list("training") if item.name.startswith("attempt-")):
        try:
            epochs = read_json(trajectory.fetch(f"training/{place}") / OUTCOME)["epochs"].values()
            steps = max(one["steps"] for one in epochs)
            if int(place.rpartition("-")[2]) >= writer and steps >= step:
                return True
        except (Corrupt, FileNotFoundError, KeyError, TypeError, AttributeError, ValueError):
            continue  # damaged: it does not count, as ``find_trainings`` reports
    return False


def snapshot_key(epoch: int) -> str:
    """Return where a snapshot is published, below its trajectory."""
    return f"snapshots/epoch-{epoch}"


def snapshot_folder(ledger: Ledger, trajectory: str, epoch: int) -> Path:
    """Return the folder of a published snapshot; there is none where none is."""
    return ledger.trajectory(trajectory).fetch(snapshot_key(epoch))


def has_snapshot(ledger: Ledger, trajectory: str, epoch: int) -> bool:
    """Return whether a snapshot is published and matches its manifest; of one in an object store, by names and sizes.

    Raises OSError when its store cannot be asked.
    """
    folder = snapshot_folder(ledger, trajectory, epoch)
    try:
        return folder.is_dir() and bool(verify_stored(folder))
    except Corrupt as error:
        ledger.report_corrupt(folder, str(error))
        return False


@contextmanager
def open_snapshot(ledger: Ledger, trajectory: str, epoch: int) -> Iterator[tuple[Path, dict[str, str]] | None]:
    """Yield where a published snapshot that matches its manifest can be read, and its hashes by file; None without one.

    One in an object store is fetched to this machine, and stays there while the block runs. Raises OSError when its
    store cannot be asked.
    """
    folder = snapshot_folder(ledger, trajectory, epoch)
    with ExitStack() as held:
        try:
            found = held.enter_context(open_folder(folder)) if folder.is_dir() else None
        except Corrupt as error:
            ledger.report_corrupt(folder, str(error))
            found = None
        yield found


def remove_snapshot(ledger: Ledger, trajectory: str, epoch: int) -> None:
    """Remove a published snapshot: at once from its place, so that nobody reads half of one, then from disk and store.

    Several processes may do it at once. What disk or store do not let go of is left to ``gc``.
    """
    place, key = ledger.trajectory(trajectory), snapshot_key(epoch)
    folder = place.local(key)
    with suppress(FileNotFoundError):  # it is not there, or somebody else was faster
        place.set_aside(key, folder.with_name(f".{folder.name}.removed.{secrets.token_hex(4)}"))
    for doomed in folder.parent.glob(f".{folder.name}.removed.*"):  # this one, and of a process that was killed here
        try:
            remove_folder(doomed)
        except OSError as error:
            log.warning("%s is left to gc: %s", doomed, error)
