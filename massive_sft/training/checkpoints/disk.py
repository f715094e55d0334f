"""States on the disk: all that a training needs to go on after a step as if nothing had happened.

The checkpoint of a training that is not finished lies in ``<trajectory>/resume``, one at a time::

    latest.json                  the name of the folder that counts, replaced whole, last
    <attempt>-<step>-<token>/
        state/                   DeepSpeed's files, rank-<r>.pt (random states), losses.jsonl, checkpoint.json;
                                 manifest.json holds the SHA-256 of each
        snapshots/epoch-<k>/     hard links to the snapshots written before; checkpoint.json holds their hashes

What a finished training keeps for whoever asks for a later epoch lies in ``<trajectory>/kept`` in the same way, less
the snapshots, which are published: its last checkpoint, taken over by hard links before its outcome is published.

A folder that ``latest.json`` does not name was left by a writer that was killed or that lost the lease. The next
commit removes it, and so does ``gc``; nothing is ever chosen by listing. Where the ledger lies in an object store, all
this is written on the machine that trains, and each such folder is uploaded whole before ``latest.json`` names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.attempt import KEPT, LATEST, RESUME, find_stale_checkpoints
from massive_sft.ledger.lease import Claim
from massive_sft.ledger.loss_curve import LOSSES
from massive_sft.ledger.manifest import seal_folder, verify_folder
from massive_sft.ledger.resume_state import ResumeState, find_resume_states
from massive_sft.ledger.storage import Root
from massive_sft.training import snapshot

SCHEMA = 1
STATE = "state"
_FACTS = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says of itself, as ``checkpoint.json``.

    Attributes:
        attempt: the number of the attempt that wrote it.
        step: optimizer steps done.
        identity: of what is trained, see ``policy.identity``.
        layout: fields of ``Layout``.
        limit: fields of the micro-batch's ``packing.Limit``; running out of memory may have halved it.
        environment: versions of libraries, kind of device, threads: what the last bits of a loss depend on.
        snapshots: SHA-256 of ``snapshot.json`` by epoch (text).
        history: one entry for each time that this training was resumed before, see ``continuity.Resumption``.
    """

    attempt: int
    step: int
    identity: str
    layout: Mapping[str, Any]
    limit: Mapping[str, int | None]
    environment: Mapping[str, Any]
    snapshots: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class CheckpointStore:
    """Where a trajectory's checkpoints lie, who may write them, and how often.

    Attributes:
        home: the trajectory's place in the ledger.
        claim: the right to write; verified before every commit.
        interval_s: seconds from the end of one to the begin of the next, 0 for one after every step; None to choose by
            what one costs (``policy.Interval``).
        keeps_state: whether there is one after the last step too, for ``keep``.
        settled: epochs that need no snapshot of this training any more, so that it may go on from beyond them.
    """

    home: Root
    claim: Claim
    interval_s: float | None = None
    keeps_state: bool = False
    settled: frozenset[int] = frozenset()

    @property
    def folder(self) -> Path:
        """Where checkpoints are written."""
        return self.home.local(RESUME)

    def folder_of(self, state: ResumeState) -> Path:
        """Return where a state that was read lies on this machine."""
        return self.home.local(state.key)

    def begin(self, step: int, token: str) -> str:
        """Make the folder of a checkpoint and return its name; ``token`` sets apart the processes of one attempt.

        Leftovers go first, so that a disk never has to hold more than two. Raises LeaseLost.
        """
        self.clear()
        name = f"{self.claim.number}-{step:08d}-{token}"
        (self.folder / name / STATE).mkdir(parents=True)
        return name

    def commit(self, name: str, facts: CheckpointFacts, losses: Path, snapshots: Mapping[int, Path]) -> int:
        """Complete the checkpoint ``name``, whose state all ranks have written, and make it the one that counts.

        Returns its size in bytes; links to snapshots count nothing.

        Raises:
            LeaseLost: another attempt owns the trajectory; what counted still does.
            OSError: the disk refuses; likewise.
        """
        folder = self.folder / name
        hashes = {}
        for epoch, source in snapshots.items():
            link_folder(source, folder / "snapshots" / f"epoch-{epoch}")
            hashes[str(epoch)] = hash_file(source / snapshot.NAME)
        shutil.copyfile(losses, folder / STATE / LOSSES)
        files.write_json(folder / STATE / _FACTS, {"schema": SCHEMA, **asdict(facts), "snapshots": hashes})
        seal_folder(folder / STATE)
        files.sync_folder(folder)
        self.home.push(f"{RESUME}/{name}")
        self.claim.verify()
        self._name_latest(RESUME, name)
        self.clear()
        return sum(path.stat().st_size for path in (folder / STATE).rglob("*") if path.is_file())

    def states(self) -> list[ResumeState]:
        """Return what there is to go on from, the furthest first; ``read`` verifies it."""
        return find_resume_states(self.home)

    def read(self, state: ResumeState) -> CheckpointFacts:
        """Return what a state says of itself, once it and its snapshots are verified.

        Raises Corrupt when it is damaged in any way.
        """
        if not state.name:
            raise Corrupt(f"{self.home}/{state.place}/{LATEST}: names no checkpoint")
        folder = self.home.fetch(state.key)
        try:
            verify_folder(folder / STATE)
            content = files.read_json(folder / STATE / _FACTS)
            if content.pop("schema") != SCHEMA:
                raise Corrupt(f"{folder}: was written by another version")
            facts = CheckpointFacts(**{**content, "history": tuple(content["history"])})
        except FileNotFoundError as error:
            raise Corrupt(f"{error.filename}: is missing") from error
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"{folder}: is no checkpoint ({type(error).__name__}: {error})") from error
        if state.is_kept:
            return replace(facts, snapshots={})
        for epoch, value in facts.snapshots.items():
            place = folder / "snapshots" / f"epoch-{epoch}"
            if not (place / snapshot.NAME).is_file() or hash_file(place / snapshot.NAME) != value:
                raise Corrupt(f"{place}: is not the snapshot that the checkpoint counts")
            snapshot.verify(place)
        return facts

    def keep(self, step: int) -> None:
        """Keep the checkpoint of a training's last step for whoever asks for a later epoch, in place of an earlier one.

        The checkpoint stays as well, until the outcome is published: whoever is killed here loses nothing. Without one
        of this step, which its training has told of, nothing is kept.

        Raises:
            LeaseLost: another attempt owns the trajectory; what was kept still is.
            OSError: the disk refuses; likewise.
        """
        last = next((state for state in self.states() if not state.is_kept and state.step == step), None)
        if last is None or any(state.is_kept and state.step > step for state in self.states()):
            return
        self.claim.verify()
        link_folder(self.home.fetch(last.key) / STATE, self.home.local(f"{KEPT}/{last.name}") / STATE)
        self.home.push(f"{KEPT}/{last.name}")
        self.claim.verify()
        self._name_latest(KEPT, last.name)
        self.clear()

    def clear(self) -> None:
        """Remove what does not count. Raises LeaseLost, so that a process that stood still leaves its successor alone.

        It may learn late that it lost the lease (NFS), so it leaves what a later attempt writes in any case.
        """
        self.claim.verify()
        for place in find_stale_checkpoints(self.home):
            writer = place.partition("/")[2].partition("-")[0]
            if not writer.isdecimal() or int(writer) <= self.claim.number:
                self.home.delete(place)

    def discard(self, state: ResumeState) -> None:
        """Make a state that cannot be used count no more. Raises LeaseLost."""
        self.claim.verify()
        self.home.delete(f"{state.place}/{LATEST}")

    def _name_latest(self, place: str, name: str) -> None:
        self.home.put(f"{place}/{LATEST}", files.json_bytes({"schema": SCHEMA, "name": name}))


def link_folder(source: Path, target: Path) -> None:
    """Make ``target`` a folder of hard links to the files of ``source``, whole or not at all; it may replace another.

    ``source`` may go away, and files written anew in its place are other files.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=os.link)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    files.sync_folder(target.parent)
