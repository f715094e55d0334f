"""The sweep's place on an MLflow store: its experiment, and in it the run of its own that the cells' runs name."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.tracking.address import PLACE, artifact_location, bucket_problem, database_path
from massive_sft.tracking.run_fields import LEDGER, SWEEP
from massive_sft.tracking.view import KEY

log = logging.getLogger(__name__)

PAGE = 200
"""Runs asked for at once: each comes with all of its metrics, and an answer must come in time."""
PARENT = "massive_sft.parent"
NESTED = "mlflow.parentRunId"
"""How earlier versions tied cells to the sweep's run: MLflow's list hides them then until somebody expands it."""
LEDGER_ID = "massive_sft.ledger_id"
NOTE = "mlflow.note.content"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Versions of MLflow that read it open the experiment on its runs, and not on the traces of an agent."""


@dataclass(frozen=True)
class Origin:
    """Where a sweep's runs come from.

    Attributes:
        sweep: name of the sweep, and of its experiment.
        root: the storage root, for people.
        id: of the ledger there (``ledger.marker.ledger_id``); two of one sweep's name are two studies.
    """

    sweep: str
    root: str
    id: str


def find_experiment(client: MlflowClient, uri: str, origin: Origin) -> Experiment:
    """Find or make a sweep's experiment.

    Raises:
        InvalidInput: it was deleted on the tracker, or its artifacts go to where nothing here can write.
    """
    existing = client.get_experiment_by_name(origin.sweep)
    if existing is None:
        path = database_path(uri)
        made = client.create_experiment(origin.sweep, artifact_location=artifact_location(uri))
        log.info("made the experiment %s in %s", origin.sweep, path or redact(uri))
        existing = client.get_experiment(made)
    if existing.lifecycle_stage != "active":
        remedy = f"`mlflow experiments restore -x {existing.experiment_id}`, or rename the sweep"
        raise InvalidInput(Problem(PLACE, f"has this experiment in its trash: {remedy}", origin.sweep))
    problem = bucket_problem(existing.artifact_location, PLACE)
    if problem is not None:
        raise InvalidInput(problem)
    note = f"A mirror of the ledger in `{origin.root}`; its columns and charts are the view `{KEY}`."
    for key, value in (KIND | {NOTE: note}).items():
        if key not in existing.tags:
            client.set_experiment_tag(existing.experiment_id, key, value)
    return existing


def find_parent(
    client: MlflowClient, uri: str, experiment: str, origin: Origin, began: Callable[[], int]
) -> tuple[Run, str]:
    """Find or make a sweep's own run, and mark it running; return also the roots of other ledgers that have one here.

    One that somebody removed by hand, while the runs of its cells are there, is restored: under another one these
    would be written a second time, beside the first.

    A run without the ledger's id was made by an earlier version: on a server it belongs to whoever has the same root,
    in a local store to its ledger, wherever that was moved.

    Args:
        began: when the sweep began, in milliseconds since 1970; asked only for a new run.
    """

    def is_own(run: Run) -> bool:
        tags = run.data.tags
        same_place = database_path(uri) is not None or tags.get(LEDGER) == origin.root
        return bool(tags[LEDGER_ID] == origin.id if LEDGER_ID in tags else same_place)

    found = list(search(client, experiment, {SWEEP: origin.sweep}))
    own, others = [run for run in found if is_own(run)], [run for run in found if not is_own(run)]
    if not own:
        removed = search(client, experiment, {SWEEP: origin.sweep}, ViewType.DELETED_ONLY)
        own = [run for run in removed if is_own(run) and _has_children(client, experiment, run)]
        for run in own:
            log.warning("the tracker had the sweep's own run %s in its trash; it is restored", run_id(run))
            client.restore_run(run_id(run))
    elsewhere = ", ".join(sorted(run.data.tags.get(LEDGER, "an unknown place") for run in others))
    where = f"{socket.gethostname()}:{origin.root}"
    if own:
        kept = _only(client, experiment, sorted(own, key=run_id))
        for key, value in {LEDGER_ID: origin.id, LEDGER: origin.root}.items():
            if kept.data.tags.get(key) != value:
                client.set_tag(run_id(kept), key, value)
        client.update_run(run_id(kept), status="RUNNING")
        return kept, elsewhere
    tags = {
        SWEEP: origin.sweep,
        LEDGER: origin.root,
        LEDGER_ID: origin.id,
        "mlflow.source.name": "massive-sft",
        NOTE: f"The sweep `{origin.sweep}`: a mirror of the ledger in `{origin.root}`.",
    }
    name = f"{origin.sweep} @ {where}" if others else origin.sweep
    return client.create_run(experiment, start_time=began(), tags=tags, run_name=name), elsewhere


def search(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], view: int = ViewType.ACTIVE_ONLY
) -> Iterator[Run]:
    """Yield the runs with all of these tags, the oldest first; without those in the trash, or of a ``ViewType``."""
    query = " and ".join(f"tags.`{key}` = '{text}'" for key, text in tags.items())
    token = None
    while True:
        page: Any = client.search_runs(
            [experiment],
            query,
            run_view_type=view,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def remove_second(client: MlflowClient, run: Run) -> None:
    """Remove a run that there should be once."""
    log.warning("the tracker had a second run of %s; it is in its trash: %s", run.info.run_name, run_id(run))
    client.delete_run(run_id(run))


def run_id(run: Run) -> str:
    """Return a run's id on the tracker."""
    return str(run.info.run_id)


def _only(client: MlflowClient, experiment: str, parents: list[Run]) -> Run:
    """Return the one parent; the second of two that were made by a repeated call is removed."""
    if len(parents) == 1:
        return parents[0]
    childless = [run for run in parents if not _has_children(client, experiment, run)]
    kept = next((run for run in parents if run not in childless), parents[0])
    for run in childless:
        if run is not kept:
            remove_second(client, run)
    return kept


def _has_children(client: MlflowClient, experiment: str, parent: Run) -> bool:
    return any(next(search(client, experiment, {tag: run_id(parent)}), None) for tag in (PARENT, NESTED))
