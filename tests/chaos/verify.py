"""What must be true once everything was disturbed and rerun: nothing lost, nothing twice, every bit the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from chaos.sweep import NAME
from chaos.view import View
from chaos.watch import decisions_of, records_of
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.attempt import published_folders
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.running.outcome import open_snapshot
from massive_sft.tracking.run_fields import CELL, RECORD, checksum

TIMES = {"seconds", "run_seconds"}  # what may differ of what a record says of its training


def problems(view: View, undisturbed: Path, tracker: str, steps: int) -> Iterator[str]:
    """Yield everything that is wrong with a disturbed sweep.

    Args:
        undisturbed: the root, a folder, of the same sweep that nobody disturbed.
        tracker: address of the MLflow server.
        steps: of each training.
    """
    view.refresh()
    ledger, expected = (Ledger.open(root, create=False) for root in (view.storage, undisturbed))
    found, wanted = ({record.cell: record for record in each.records()} for each in (ledger, expected))
    if found.keys() != wanted.keys():
        yield f"cells differ: {sorted(found.keys() ^ wanted.keys())}"
    for cell in found.keys() & wanted.keys():
        yield from _cell(view, found[cell], wanted[cell])
    for home in sorted((undisturbed / "trajectories").glob("*")):
        yield from _trajectory(ledger, home, steps)
    yield from different(decisions_of(view), decisions_of(View(undisturbed)))
    yield from _unnamed(ledger)
    yield from _tracked(found, tracker)
    yield from (f"{path}: {why}" for path, why in ledger.corrupt.items())


def different(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the decisions of searches that are missing, too many or not the same to the byte."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            how = "too many" if name not in wanted else "missing" if name not in found else "another"
            yield f"{name}: is {how}"


def _cell(view: View, found: Record, wanted: Record) -> Iterator[str]:
    name = " ".join(str(value) for value in found.coordinates.values())
    if found.status is not Status.COMPLETE:
        yield f"{name}: is {found.status}: {found.error}"
    revisions = sorted(records_of(view, found.cell))
    if len(revisions) != 1:
        yield f"{name}: has {revisions}, not one record"
    for what in ("scores", "measures", "counts"):
        if getattr(found, what) != getattr(wanted, what):
            yield f"{name}: other {what}"
    if _facts(found) != _facts(wanted):
        yield f"{name}: trained otherwise: {_facts(found)} instead of {_facts(wanted)}"


def _facts(record: Record) -> dict[str, Any]:
    ours = ("steps", "tokens", "trainable_tokens", "first_loss", "last_loss", "parameters", "micro_batch", "run_steps")
    return {key: value for key, value in (record.training or {}).items() if key in ours}


def _trajectory(ledger: Ledger, wanted: Path, steps: int) -> Iterator[str]:
    found = ledger.trajectory(wanted.name)
    trainings = [item.name for item in found.list("training") if item.name.startswith("attempt-")]
    if len(trainings) != 1:
        yield f"{wanted.name}: was trained {len(trainings)} times"
        return
    ours = _losses(found.fetch(f"training/{trainings[0]}"))
    theirs = _losses(next((wanted / "training").glob("attempt-*")))
    if ours != theirs or len(ours) != steps:
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), steps))
        yield f"{wanted.name}: another loss curve from step {first + 1} of {len(ours)}"
    for snapshot in sorted((wanted / "snapshots").iterdir()):
        place = f"{wanted.name} {snapshot.name}"
        with open_snapshot(ledger, wanted.name, int(snapshot.name.removeprefix("epoch-"))) as opened:
            if opened is None:
                yield f"{place}: is missing"
                continue
            for path in sorted(snapshot.glob("*.safetensors")):
                if hash_file(opened[0] / path.name) != hash_file(path):
                    yield f"{place}: other weights"


def _unnamed(ledger: Ledger) -> Iterator[str]:
    """Yield what lies in an object store although nothing in the ledger says so any more."""
    homes = (ledger.trajectory(item.name) for item in ledger.storage.list("trajectories"))
    stored = [folder for home in homes for folder in published_folders(home)]
    # Below ``<trajectory>/<epoch>/<upload>`` of where all weights lie.
    for place in {Bucket(one.place.bucket, one.place.prefix.rsplit("/", 3)[0]) for one in stored}:
        named = tuple(f"{str(one.place).removeprefix(str(place))[1:]}/" for one in stored)
        yield from (f"{place}/{name}: is named nowhere" for name in place.sizes() if not name.startswith(named))
    yield from (f"{ledger.storage}/{name}: is an upload that was never finished" for name in ledger.storage.leftovers())


def _losses(training: Path) -> list[dict[str, Any]]:
    lines = (training / "losses.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def _tracked(records: dict[str, Record], tracker: str) -> Iterator[str]:
    client = MlflowClient(tracking_uri=tracker)
    experiments = client.search_experiments(filter_string=f"name = '{NAME}'")
    runs = [run for each in experiments for run in client.search_runs([each.experiment_id], max_results=1000)]
    parents = [run for run in runs if CELL not in run.data.tags]
    if len(experiments) != 1 or len(parents) != 1:
        yield f"the tracker has {len(experiments)} experiments and {len(parents)} parent runs"
    cells = Counter(run.data.tags[CELL] for run in runs if CELL in run.data.tags)
    if cells != Counter(records.keys()):
        yield f"the tracker has these runs of cells: {dict(cells)}"
    shown = {run.data.tags[CELL]: run.data.tags.get(RECORD) for run in runs if CELL in run.data.tags}
    late = [cell for cell, record in records.items() if shown.get(cell) != checksum(record)]
    if late:
        yield f"the tracker does not show the records of {late}"
