"""Records as frames: one row a score, one row a cell. What is missing is NaN or None, never 0."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from massive_sft.core.fingerprint import flatten
from massive_sft.ledger.asked import full_id
from massive_sft.ledger.record import BenchmarkScores, Record, Score
from massive_sft.study.text_sets import shown_name
from massive_sft.suites import metrics
from massive_sft.sweep.semantics import is_measure

COORDINATES = ["model", "data", "setting", "method", "size", "schedule", "horizon", "epoch", "seed", "variant"]
CONDITION = [name for name in COORDINATES if name != "seed"]
BASE = "none"
"""The method of a base model's row."""
NO_NUMBER = "the metric of these answers is no finite number"
"""Why a benchmark that was scored has no score: a perplexity beyond all floats, or a task's own metric that is NaN."""

SCORES: dict[str, str] = (
    {"cell": "string", "trajectory": "string"}
    | dict.fromkeys(COORDINATES, "string")
    | dict.fromkeys(("size", "horizon", "epoch", "seed"), "Int64")
    | {"status": "string", "benchmark": "string", "shots": "Int64", "protocol": "string", "asked": "string"}
    | {"task": "string", "kind": "string", "metric": "string", "filter": "string"}
    | dict.fromkeys(("value", "stderr", "low", "high"), "float64")
    | {"interval": "string", "n": "Int64", "higher_is_better": "boolean"}
    | {"primary": "boolean", "column": "string", "missing": "string"}
    | {"full_protocol": "string", "early": "boolean", "early_of": "Int64", "early_half_width": "float64"}
)
"""Columns of ``tidy``: ``low`` and ``high`` bound the 95 % interval, ``interval`` names its method.

``early``: whether not all of the benchmark's ``early_of`` questions were asked, because its score was known to
``early_half_width`` points; ``full_protocol`` is that by which all are asked, ``protocol`` itself of a full score."""

CELLS: dict[str, str] = (
    {"cell": "string", "trajectory": "string"}
    | dict.fromkeys(COORDINATES, "string")
    | dict.fromkeys(("size", "horizon", "epoch", "seed"), "Int64")
    | {"status": "string", "error": "string", "attempt": "Int64"}
    | dict.fromkeys(("perplexity_all", "perplexity_all_low", "perplexity_all_high"), "float64")
    | dict.fromkeys(("perplexity_response", "perplexity_response_low", "perplexity_response_high"), "float64")
    | {"perplexity_tokens_all": "Int64", "perplexity_tokens_response": "Int64"}
    | dict.fromkeys(("perplexity_text_all", "perplexity_text_response"), "float64")
    | dict.fromkeys(("bits_per_byte_all", "bits_per_byte_response"), "float64")
    | {"layer_change": "float64", "rounding_floor": "float64", "weights_changed": "Int64", "token_length": "float64"}
    | {"steps": "Int64", "tokens": "Int64", "seconds": "float64"}
    | dict.fromkeys(("first_loss", "last_loss", "first_loss_mean", "last_loss_mean"), "float64")
    | dict.fromkeys(("samples", "available", "data_tokens", "trainable_tokens"), "Int64")
    | dict.fromkeys(("truncated", "dropped", "duplicates", "repeated"), "Int64")
    | {"scored_plainly": "string", "layout": "string", "commit": "string", "created": "string", "finished": "string"}
)
"""Columns of ``cell_frame``: perplexities per token (micro average) with their 95 % interval, losses in nats per token.

``first_loss`` and ``last_loss`` are those of the cell's first and last optimizer step (``file_frames.end_losses``);
``first_loss_mean`` and ``last_loss_mean`` are means over the first and last 5 % of its steps, at least 5.
``scored_plainly`` is why the plain engine answered where the tree engine was asked for; missing where it did not.

``perplexity_*`` count special tokens such as EOS, ``perplexity_text_*`` and ``bits_per_byte_*`` the text alone; these
are missing where a version measured that did not tell them apart, ``bits_per_byte_all`` also where it counted the bytes
of a sample's first token."""

_BYTES_SINCE = {"response": 2, "all": 3}
"""The semantics of perplexity since which bits per byte are of the tokens that they are said to be of."""


def tidy(records: Iterable[Record], templates: Mapping[str, str] = MappingProxyType({})) -> pd.DataFrame:
    """Return one row per cell, benchmark, task or group, metric and filter, and one per benchmark without a score.

    Args:
        records: outcomes; several of one cell would be several rows.
        templates: the name of the template by what was asked (``BenchmarkScores.asked``), where it is known.

    Returns:
        The columns of ``SCORES``. Values are in the metric's own unit. ``primary`` marks the one metric that is a
        task's score (``metrics.primary_metric``) of the part that stands for the benchmark (``metrics.headline``);
        ``column`` names it: the benchmark, with the task where there are several, and with the template's name, or
        the beginning of what was asked, where a benchmark's name stands for several protocols of a model (another
        template, another limit). ``missing`` says why a benchmark has no score.
    """
    kept = list(records)
    rows = [row for record in kept for row in _score_rows(record)]
    frame = pd.DataFrame(rows, columns=list(SCORES)).astype(SCORES)
    frame["column"] = _columns(frame, templates)
    return frame


def _score_rows(record: Record) -> Iterator[dict[str, Any]]:
    identity = _identity(record)
    for protocol, benchmark_scores in sorted(record.scores.items(), key=lambda item: (item[1].benchmark, item[0])):
        about: dict[str, Any] = {
            "benchmark": benchmark_scores.benchmark,
            "shots": benchmark_scores.shots,
            "protocol": protocol,
            "asked": benchmark_scores.asked,
            "full_protocol": benchmark_scores.full_protocol(protocol),
            "early": benchmark_scores.early is not None,
        }
        if benchmark_scores.early is not None:
            early = benchmark_scores.early
            about |= {"early_of": early.of, "early_half_width": early.half_width}
        for row in _benchmark_rows(benchmark_scores):
            yield identity | about | row
    for benchmark, why in sorted(record.missing.items()):
        # A base model may have the score under one template and lack it under another: the score's row is the one.
        scored = any(benchmark_scores.benchmark == benchmark for benchmark_scores in record.scores.values())
        # A measure has columns of its own in ``cell_frame``.
        primary = not scored and not is_measure(benchmark)
        yield identity | {"benchmark": benchmark, "missing": why, "primary": primary}


def _benchmark_rows(benchmark_scores: BenchmarkScores) -> Iterator[dict[str, Any]]:
    headline = metrics.headline(benchmark_scores)
    for kind, parts in (("group", benchmark_scores.groups), ("task", benchmark_scores.tasks)):
        for name, scores in parts.items():
            chosen = metrics.primary_metric(scores) if (kind, name) in headline else None
            for key, score in scores.items():
                metric, filter_name = metrics.split(key)
                about = {"task": name, "kind": kind, "metric": metric, "filter": filter_name, "primary": key == chosen}
                about["missing"] = NO_NUMBER if key == chosen and score.value is None else None
                yield about | _numbers(score)


def _numbers(score: Score) -> dict[str, Any]:
    low, high = score.interval or (None, None)
    numbers = {"value": score.value, "stderr": score.stderr, "low": low, "high": high}
    return numbers | {"interval": score.method, "n": score.n, "higher_is_better": score.higher_is_better}


def _identity(record: Record) -> dict[str, Any]:
    names = {name: record.coordinates.get(name) for name in COORDINATES}
    return {"cell": record.cell, "trajectory": record.trajectory, **names, "status": str(record.status)}


def _columns(frame: pd.DataFrame, templates: Mapping[str, str]) -> pd.Series:
    """Name the primary rows' columns of a wide table, so that each holds one task, and of a model one protocol.

    Models differ in the tokens that end an answer, which are part of what was asked of each: that makes no column. Nor
    does an early answer, which is marked.
    """
    primary = frame[frame["primary"].fillna(False)]
    asked_in_full = primary["asked"].map(full_id, na_action="ignore")
    primary = primary.assign(asked=asked_in_full, protocol=primary["full_protocol"])
    scored = primary[primary["asked"].notna()]
    tasks = scored.groupby("benchmark")["task"].nunique().to_dict()
    scored = scored.assign(template=scored["asked"].map(lambda asked: templates.get(asked, asked)))
    of_model = scored.groupby(["model", "benchmark"])[["asked", "template"]].nunique()
    asked = of_model["asked"].groupby("benchmark").max().to_dict()
    # Under one template a model may be scored in several ways, say its adapters merged and not.
    by_template = (of_model["asked"] == of_model["template"]).groupby("benchmark").all().to_dict()
    # One cell scored twice under what was asked once: the requests changed, say with the library.
    protocols = scored.groupby(["cell", "benchmark", "asked"])["protocol"].nunique()
    several = protocols.groupby("benchmark").max().to_dict()

    def name(benchmark: str, asked_for: str, task: str, protocol: str) -> str:
        if pd.isna(asked_for):
            return benchmark
        text = benchmark if tasks[benchmark] == 1 else f"{benchmark}:{task}"
        if several[benchmark] > 1:
            return f"{text} [{protocol[:6]}]"
        if asked[benchmark] == 1:
            return text
        return f"{text} [{metrics.protocol_name(asked_for, templates if by_template[benchmark] else {})}]"

    names = list(map(name, *(primary[column].tolist() for column in ("benchmark", "asked", "task", "protocol"))))
    return pd.Series(names, index=primary.index, dtype="string").reindex(frame.index)


def cell_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row a record with its coordinates, outcome, measures, counts and training: the columns of ``CELLS``.

    ``layout`` is JSON with sorted keys; ``steps``, ``tokens`` and ``seconds`` are those of the training up to the
    cell's epoch. ``first_loss`` and ``last_loss`` lie in files beside the records, and are missing here.
    """
    return pd.DataFrame([_cell_row(record) for record in records], columns=list(CELLS)).astype(CELLS)


def _cell_row(record: Record) -> dict[str, Any]:
    total, training = _mapping(record.counts, "total"), record.training
    row = _identity(record) | {"error": record.error, "attempt": record.attempt}
    for over in ("all", "response"):
        measured = _mapping(record.measures, "perplexity", over)
        low, high = measured.get("perplexity_micro_interval") or (None, None)
        row |= {
            f"perplexity_{over}": measured.get("perplexity_micro"),
            f"perplexity_tokens_{over}": measured.get("tokens"),
        }
        row |= {f"perplexity_{over}_low": low, f"perplexity_{over}_high": high}
        row[f"perplexity_text_{over}"] = measured.get("perplexity_text_micro")
        right = _mapping(record.measures, "perplexity").get("schema", 1) >= _BYTES_SINCE[over]
        row[f"bits_per_byte_{over}"] = measured.get("bits_per_byte_micro") if right else None
    change = _mapping(record.measures, "layer_change")
    row |= {"layer_change": change.get("relative"), "rounding_floor": change.get("rounding_floor")}
    row["weights_changed"] = change.get("changed")
    row["token_length"] = _mapping(record.measures, "token_length", "all").get("mean")
    row |= {name: training.get(name) for name in ("steps", "tokens", "seconds")}
    row |= {f"{name}_mean": training.get(name) for name in ("first_loss", "last_loss")}
    row |= {name: total.get(name) for name in ("samples", "available", "trainable_tokens")}
    row |= {name: total.get(name) for name in ("truncated", "dropped", "duplicates", "repeated")}
    row["data_tokens"] = total.get("tokens")
    row["scored_plainly"] = record.cost.get("plainly")
    row["layout"] = json.dumps(training["layout"], sort_keys=True) if training.get("layout") else None
    row["commit"] = _mapping(record.provenance, "git").get("commit")
    return row | {"created": record.created, "finished": record.finished}


def _mapping(value: Any, *path: str) -> dict[str, Any]:
    """Return the mapping at a path; an empty one where there is none (an older record, a value of None)."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def layer_changes(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per cell and layer, from the input upward: ``cell``, ``layer`` (from 0) and its relative
    Frobenius ``change``.
    """
    profiles = ((record.cell, _mapping(record.measures, "layer_change", "relative_by_layer")) for record in records)
    rows = [
        {"cell": cell, "layer": int(layer), "change": profile[layer]}
        for cell, profile in profiles
        for layer in sorted(profile, key=int)  # a record's keys stand in the order of texts: 0, 1, 10, 11, 2
    ]
    frame = pd.DataFrame(rows, columns=["cell", "layer", "change"])
    return frame.astype({"cell": "string", "layer": "int64", "change": "float64"})


def measure_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per number that was measured of a cell beside its scores, layers apart (``layer_changes``).

    Columns: ``cell``, ``measure`` (``perplexity``, ``layer_change``, ``token_length``, ``texts:<name>``), ``name`` of
    the number within it (``response.perplexity_micro``; ``[0]`` and ``[1]`` bound an interval), ``value``. Where the
    records have several sets of texts of one name, the beginning of its hash stands behind it.
    """
    kept = list(records)
    every = {measure for record in kept for measure in record.measures}
    shown = {measure: shown_name(measure, every) for measure in every}
    rows = [
        {"cell": record.cell, "measure": shown[measure], "name": name, "value": float(value)}
        for record in kept
        for measure, numbers in record.measures.items()
        for name, value in flatten(numbers).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name != "schema" and "_by_layer" not in name
    ]
    frame = pd.DataFrame(rows, columns=["cell", "measure", "name", "value"])
    return frame.astype({"cell": "string", "measure": "string", "name": "string", "value": "float64"})


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as mappings by column name."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def to_json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as JSON values by column name; what is missing is None."""
    return to_rows(frame.astype(object).where(frame.notna(), None))


def grouped(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group rows by the values of some columns, missing ones alike, in order of appearance.

    Much faster than a frame's ``groupby`` where groups are many and small.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(None if pd.isna(row[key]) else row[key] for key in keys), []).append(row)
    return groups


def last_epochs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each training run's last epoch, so that near-duplicates of one run count once."""
    trained = frame[frame["method"] != BASE]
    last = trained.groupby("trajectory")["epoch"].transform("max")
    return trained[trained["epoch"] == last]


def released(table: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's released table (or ``tables.release_table``'s file) in the form of ``tidy``.

    Intervals, counts and standard errors are not in it, so they are missing. All its benchmarks are better when
    higher. Values keep the table's scale; ``metric`` names it: ``rating`` (1-10), ``fraction`` or ``percent``.
    """
    known = {"model_name", "data_name", "data_size", "lora", "lr_strategy", "epoch"}
    benchmarks = [name for name in table.columns if name not in known and not str(name).startswith("Unnamed")]
    base = table["data_name"] == "pretrain"
    lora = table["lora"].map(lambda value: str(value).lower() == "true")
    ids = [f"row-{index}" for index in range(len(table))]
    method = np.select([base, lora], [BASE, "lora"], "full")
    wide = pd.DataFrame({"cell": ids, "model": table["model_name"], "data": table["data_name"]}).assign(
        setting=method,
        method=method,
        size=table["data_size"],
        schedule=table["lr_strategy"].where(~base, BASE),
        epoch=table["epoch"],
        variant="",
        status="COMPLETE",
    )
    run = ["model", "data", "setting", "size", "schedule"]
    wide["trajectory"] = wide[run].astype("string").agg("/".join, axis=1).mask(base)
    scores = pd.concat([wide, table[benchmarks]], axis=1).melt(list(wide), var_name="benchmark", value_name="value")
    scores["metric"] = scores["benchmark"].map(_released_metric)
    for name in ("protocol", "full_protocol", "asked", "task", "column"):
        scores[name] = scores["benchmark"]
    scores = scores.assign(kind="task", filter="none", higher_is_better=True, primary=True)
    scores["missing"] = scores["value"].isna().map({True: "not in the table", False: None})
    return scores.reindex(columns=list(SCORES)).astype(SCORES)


def _released_metric(benchmark: str) -> str:
    if benchmark.startswith("mtbench"):
        return "rating"
    return "fraction" if benchmark.startswith("Truthful_QA") else "percent"
