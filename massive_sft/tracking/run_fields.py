"""What the tracker shows of a cell: its record as a run's name, parameters, tags and numbers. Pure; no tracker here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from massive_sft.core.fingerprint import digest, fingerprint
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.record_warnings import find_warnings
from massive_sft.study.text_sets import shown_name
from massive_sft.sweep.cell import Coordinates
from massive_sft.sweep.content import flattened
from massive_sft.sweep.semantics import text_set
from massive_sft.tracking.metric_names import (
    clean_name,
    finite_numbers,
    gain_values,
    main_paths,
    metric_names,
    score_values,
    template_titles,
)

# Limits of every MLflow server since 2.0, though newer ones take more; the whole is in the run's record.json.
KEY_LENGTH = 250
PARAM_LENGTH = 500
TAG_LENGTH = 1000
NONE = "none"  # of a tag that has nothing to say: an empty one reads as if there were something

SWEEP, LEDGER, CELL, RECORD, GAINS, CURVE = (
    f"massive_sft.{name}" for name in ("sweep", "ledger", "cell", "record", "gains", "curve")
)
NO_TEMPLATES: Mapping[str, str] = {}
BY_LAYER = "layer_change/by_layer"
"""Its steps are layers, so that MLflow draws the profile."""


@dataclass(frozen=True)
class Point:
    """One number at one step; ``timestamp`` is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class MixtureInput:
    """What a cell was trained on, for the tracker's column ``Dataset``.

    Attributes:
        name: of the mixture.
        digest: of its content.
        parts: its parts with their samples, for people.
    """

    name: str
    digest: str
    parts: str


@dataclass(frozen=True)
class CellRun:
    """A cell's record as the tracker shows it.

    Attributes:
        cell: its id.
        version: checksums of the record and of its gains; the same are never written twice.
        name: the coordinates, for people.
        status: the tracker's word; the record's own is a tag.
        start, end: milliseconds since 1970; between them the training up to the cell's epoch, then its scoring.
        params: coordinates and content; what makes the cell what it is.
        tags: ids, status, origin.
        mixture: None for a base model.
        points: scores, gains, measures and the training's summary, at step 0, which MLflow compares as bars; the
            change by layer.
        main: names of each benchmark's main score and its gain, the columns of the sweep's view.
    """

    cell: str
    version: tuple[str, str]
    name: str
    status: Literal["FINISHED", "FAILED"]
    start: int
    end: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    mixture: MixtureInput | None
    points: tuple[Point, ...]
    main: tuple[str, ...]


def describe_record(
    record: Record,
    content: Mapping[str, Any],
    coordinates: Coordinates | None,
    ledger: str,
    base: Record | None = None,
    templates: Mapping[str, str] = NO_TEMPLATES,
) -> CellRun:
    """Return what to show of a record.

    Args:
        record: the cell's newest, as the sweep asks for it.
        content: what the cell is, of its ``cell.json``.
        coordinates: its names in the sweep; None for a cell that left the sweep, shown under its record's names.
        ledger: path of the storage root, for people.
        base: the newest record of the cell's base model, likewise, which gains are taken over.
        templates: as for ``metric_names.score_values``.
    """
    coordinate_names = record.coordinates if coordinates is None else coordinates._asdict()
    start, end = span(record)
    scores, gains = score_values(record, templates), gain_values(record, base, templates)
    values = {**scores, **gains, **finite_numbers(_measures(record))}
    names = metric_names(values)
    points = [Point(_shortened(names[path], KEY_LENGTH), value, end, 0) for path, value in values.items()]
    points += [Point(BY_LAYER, change, end, layer) for layer, change in layer_profile(record)]
    mixture = _mixture(record, str(coordinate_names.get("data")), content)
    return CellRun(
        cell=record.cell,
        version=version(record, base, templates),
        name=Coordinates.describe(coordinate_names) if coordinates is None else str(coordinates),
        status="FAILED" if record.status is Status.FAILED else "FINISHED",
        start=start,
        end=end,
        params=_params(coordinate_names, content, mixture),
        tags=_tags(record, ledger),
        mixture=mixture,
        points=tuple(points),
        main=tuple(_shortened(names[path], KEY_LENGTH) for path in main_paths(record, templates) if path in names),
    )


def stale_metrics(shown: Iterable[str], run: CellRun) -> set[str]:
    """Return which of the metrics that a run shows the cell no longer has: scores that were invalidated, or that the
    sweep no longer asks for. Its curves are not among them, nor what somebody logged under a name of one part.
    """
    current = {point.key for point in run.points}
    return {key for key in shown if "/" in key and not key.startswith("training/")} - current


def version(record: Record, base: Record | None, templates: Mapping[str, str]) -> tuple[str, str]:
    """Return what tells one state of a cell from another: its record, and its gains and templates where it has any."""
    gains = gain_values(record, base, templates)
    beside: list[Any] = [[*path, gain] for path, gain in sorted(gains.items())]
    beside += template_titles(record, templates)
    return checksum(record), fingerprint(beside) if beside else ""


def checksum(record: Record) -> str:
    """Return what tells one record of a cell from another; a field that a later version adds changes nothing."""
    return fingerprint(record.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def to_milliseconds(time: str) -> int:
    """Return a record's time in milliseconds since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def span(record: Record) -> tuple[int, int]:
    """Return when a cell's own work began and ended: its training up to its epoch, then scoring and measuring.

    The records' times are whole seconds, so what that took counts where it is known.
    """
    scoring_began, finished = to_milliseconds(record.created), to_milliseconds(record.finished)
    training_s = record.training.get("seconds")
    took: Any = record.cost.get("seconds")
    scoring_s = sum(took.values()) if isinstance(took, Mapping) else 0.0
    start = scoring_began - round(1000 * training_s) if isinstance(training_s, int | float) else scoring_began
    return start, scoring_began + round(1000 * scoring_s) if scoring_s else finished


def _mixture(record: Record, name: str, content: Mapping[str, Any]) -> MixtureInput | None:
    if "data" not in content:
        return None
    counts: Any = record.counts.get("parts")
    parts = [f"{part['name']} {part['samples']}" for part in counts] if isinstance(counts, list) else []
    return MixtureInput(name, fingerprint(content["data"]), ", ".join(parts))


def _params(names: Mapping[str, Any], content: Mapping[str, Any], mixture: MixtureInput | None) -> dict[str, str]:
    """Return coordinates, then content under dotted names; what is None or empty is left out, not made up.

    The setting's own fields stand bare (``lr``, ``lora.rank``). A mixture is told by its parts' names and the
    fingerprint of what they hold; ``cell.json`` has it all.
    """
    told = {key: value for key, value in content.items() if key not in ("setting", "data")}
    flat = {**dict(flattened(content.get("setting", {}))), **dict(flattened(told)), **names}
    flat["mixture"] = flat.pop("data", None)
    if mixture is not None:
        flat |= {"mixture.id": mixture.digest, "mixture.parts": mixture.parts}
    shown = {key: _as_text(value) for key, value in flat.items() if value != ""}
    return {
        _shortened(clean_name(key), KEY_LENGTH): _shortened(redact(value), PARAM_LENGTH)
        for key, value in sorted(shown.items())
        if value != "null"
    }


def _as_text(value: Any) -> str:
    """Return JSON's text, of a text itself; a whole number has no fraction (``32.0`` is ``32``, as people wrote it)."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else json.dumps(value)


def _tags(record: Record, ledger: str) -> dict[str, str]:
    git = record.provenance.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    layout = record.training.get("layout")
    early = "; ".join(f"{scores.benchmark}: {scores.early}" for scores in record.scores.values() if scores.early)
    tags = {
        "mlflow.source.name": "massive-sft",
        "mlflow.source.git.commit": commit,
        "massive_sft.trajectory": record.trajectory,
        "massive_sft.status": record.status.value,
        "massive_sft.attempt": str(record.attempt),
        "massive_sft.git": commit,
        "massive_sft.host": record.provenance.get("host"),
        LEDGER: ledger,
        "massive_sft.layout": json.dumps(layout) if layout else None,
        # Written even when empty, so that what an earlier record said is gone once it no longer holds.
        "massive_sft.error": record.error or NONE,
        "massive_sft.warning": "; ".join(find_warnings(record)) or NONE,
        "massive_sft.missing": json.dumps(record.missing) if record.missing else NONE,
        "massive_sft.early": early or NONE,
    }
    return {key: _shortened(redact(value), TAG_LENGTH) for key, value in tags.items() if isinstance(value, str)}


_MEANS = {"first_loss": "first_loss_mean", "last_loss": "last_loss_mean"}  # over several steps, not of one


def _measures(record: Record) -> dict[str, Any]:
    """Return measures and the training's summary; beside the curves of ``training`` the latter would hide them."""
    training = {_MEANS.get(key, key): value for key, value in record.training.items() if key != "layout"}
    measures = dict(record.measures)
    change = measures.get("layer_change")
    if isinstance(change, Mapping):
        measures["layer_change"] = {key: value for key, value in change.items() if key != "relative_by_layer"}
    # A colon is in no metric's name on every system.
    shown = {shown_name(name, measures).replace(text_set(""), "texts_", 1): found for name, found in measures.items()}
    return {**shown, "training": {"summary": training}}


def layer_profile(record: Record) -> list[tuple[int, float]]:
    """Return each layer (from 0) with its relative change; nothing where it was not measured."""
    change: Any = record.measures.get("layer_change")
    by_layer = change.get("relative_by_layer") if isinstance(change, Mapping) else None
    return sorted((int(layer), float(value)) for layer, value in (by_layer or {}).items())


def _shortened(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters; a shortened one ends with a hash of the whole."""
    return text if len(text) <= limit else f"{text[: limit - 20]}...{digest(text)}"
