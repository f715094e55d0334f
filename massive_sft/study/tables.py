"""Tables of scores: wide, with the released table's conventions, and gains over the base model."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from massive_sft.study.frames import BASE, CONDITION, grouped, to_rows
from massive_sft.study.paired import EQUAL
from massive_sft.suites import metrics

RELEASED = ["model_name", "data_name", "data_size", "lora", "lr_strategy", "epoch"]
BESIDE = ["setting", "method", "horizon", "seed", "variant", "status", "cell"]
"""What the released table lacks and cells are told apart by; after the benchmarks, so that the rest lines up."""

DETAILS = ["lr", "batch", "perplexity_all", "perplexity_response", "layer_change"]
"""What ``with_details`` adds beside the gains."""


def primary_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``tidy`` that are benchmarks' scores, one per cell and ``column``."""
    return scores[scores["primary"].fillna(False)]


def release_table(cells: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell in the released table's conventions, missing scores left missing.

    Columns: ``RELEASED``, one per benchmark (fractions in percent, other metrics in their own unit), ``BESIDE``.
    Where scores are early answers the last column, ``early``, names their benchmarks.
    A base model's row has ``data_name`` pretrain, ``data_size`` and ``epoch`` 0, no ``lora`` and no ``lr_strategy``.

    Args:
        cells, scores: of ``frames.cell_frame`` and ``frames.tidy``, from the same records.
    """
    base = cells["method"] == BASE
    left = pd.DataFrame(
        {
            "model_name": cells["model"],
            "data_name": cells["data"].mask(base, "pretrain"),
            "data_size": cells["size"].mask(base, 0),
            "lora": (cells["method"] == "lora").astype("boolean").mask(base),
            "lr_strategy": cells["schedule"].mask(base),
            "epoch": cells["epoch"],
        }
    )
    rows = primary_rows(scores)
    shown = rows.assign(shown=rows["value"] * rows["metric"].map(metrics.scale, na_action="ignore").astype("float64"))
    wide = shown.pivot(index="cell", columns="column", values="shown") if len(rows) else pd.DataFrame()
    wide = wide.reindex(cells["cell"]).set_axis(cells.index)
    return pd.concat([left, wide, cells[BESIDE], *_early_columns(cells, rows)], axis=1)


def _early_columns(cells: pd.DataFrame, rows: pd.DataFrame) -> list[pd.Series]:
    """Return the column ``early``, the names of the benchmarks whose scores are early answers; none where none is."""
    early = rows[rows["early"].fillna(False)]
    if early.empty:
        return []
    names = early.groupby("cell")["column"].agg("; ".join).reindex(cells["cell"]).set_axis(cells.index)
    return [names.rename("early")]


def with_details(
    table: pd.DataFrame, cells: pd.DataFrame, gains: pd.DataFrame, settings: pd.DataFrame, texts: pd.DataFrame
) -> pd.DataFrame:
    """Return a ``release_table`` with further columns behind its own, for people who want all of a cell in one row.

    Added: ``DETAILS``, for each set of texts ``perplexity <name>`` and ``bits_per_byte <name>``, and, for each
    benchmark, its gain in the unit of its score under ``gain <column>``.

    Args:
        table: of these cells.
        texts: of ``text_sets.text_set_frame``.
        gains: of ``gains``.
        settings: ``cell``, ``lr`` and ``batch``.
    """
    rows = primary_rows(gains)
    scaled = rows.assign(gain=rows["gain"] * rows["metric"].map(metrics.scale, na_action="ignore").astype("float64"))
    wide = scaled.pivot(index="cell", columns="column", values="gain").dropna(axis=1, how="all").add_prefix("gain ")
    about = cells.merge(settings, on="cell", how="left").set_index("cell")[DETAILS]
    for name, members in texts.groupby("texts", sort=True):
        measured = members.set_index("cell")[["perplexity", "bits_per_byte"]]
        about = about.join(measured.add_suffix(f" {name}"))
    beside = about.join(wide).reindex(table["cell"]).set_axis(table.index)
    return pd.concat([table, beside], axis=1)


def with_mixture(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame under the sweep file's word for what records call ``data``."""
    return frame.rename(columns={"data": "mixture"})


def with_data(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of ``with_mixture`` under the word of records again."""
    return frame.rename(columns={"mixture": "data"})


def to_csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV, in UTF-8; a missing value is an empty field.

    Numbers have 12 digits: what a score in percent has beyond them (56.00000000000001) is rounding.
    """
    return table.to_csv(index=False, lineterminator="\n", float_format="%.12g").encode()


def to_parquet(table: pd.DataFrame) -> bytes:
    """Return a table as Parquet; a missing value is null."""
    sink = io.BytesIO()
    table.to_parquet(sink, index=False)
    return sink.getvalue()


NO_SCORE = "no score"
SAME = ["model", "full_protocol", "kind", "task", "metric", "filter"]


def gains(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the trained cells' rows of ``tidy`` beside the same model's base score under the same protocol.

    A protocol's id holds the requests with their template, so equal ids are asked the same way; an early answer's score
    is the base model's plus the mean difference, so its gain is that difference. Added columns:

    - ``base_cell``, ``base``, ``base_stderr``, ``base_low``, ``base_high``, ``base_n``: the base model's score.
    - ``gain`` = value - base; ``gain_stderr``, of independent errors. Both models answer the same questions, so
      their errors are rather positively correlated and this is an upper bound.
    - ``gain_low``, ``gain_high``: 95 % interval from the two scores' own intervals (Newcombe 1998, method 10; Zou and
      Donner 2008): it stays honest where all answers are wrong and the standard error is 0.
    - ``improvement``: the gain with the sign turned where lower is better; missing where the direction is not known.
    - ``why``: why there is no gain.
    - ``gain_interval``: ``independent``, missing where there is no interval; ``paired_gains.with_paired_intervals``
      makes ``paired`` ones.
    """
    is_base = scores["method"] == BASE
    names = {"value": "base", "stderr": "base_stderr", "low": "base_low", "high": "base_high", "n": "base_n"}
    bases = scores[is_base & scores["protocol"].notna()].rename(columns={"cell": "base_cell", **names})
    twice = bases.duplicated(SAME, keep=False)
    unique = bases[~twice][[*SAME, "base_cell", *names.values()]].assign(known=True)
    several = bases.loc[twice, SAME].drop_duplicates().assign(several=True)
    frame = scores[~is_base].merge(unique, on=SAME, how="left").merge(several, on=SAME, how="left")
    frame = gain_over(frame)
    frame["why"] = _why(frame, set(scores.loc[is_base, "model"]))
    return frame.drop(columns=["known", "several"])


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its 95 % interval, NaN where it has none; ``by_t``: whether Student's t over the values gave it."""

    mean: float
    low: float
    high: float
    by_t: bool


def mean_interval(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> MeanInterval:
    """Return the mean of scores or gains of several runs on the same questions, with its interval.

    Student's t over the values, but never narrower than the single intervals on average: what these questions say by
    chance, they say of all runs, and no mean over runs takes it away, nor does the spread between runs show it. Values
    that are all equal have no spread to estimate anything from, so without single intervals their mean has none.

    Args:
        values: two at least.
        lows, highs: the ends of their own 95 % intervals; NaN where one has none.
    """
    kept = np.array([values, lows, highs], dtype=np.float64)
    mean, spread = float(kept[0].mean()), float(kept[0].std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    if spread <= EQUAL * np.abs(kept[0]).max():
        half = math.nan
    own = (_mean_known(widths) for widths in (kept[0] - kept[1], kept[2] - kept[0]))
    below, above = (float(np.fmax(half, width)) for width in own)
    return MeanInterval(mean, mean - below, mean + above, by_t=below == above == half)


def _mean_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def gain_over(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what ``gains`` tells of ``value`` (``low``, ``high``, ``stderr``) over ``base``, but for ``why``."""
    gain = frame["value"] - frame["base"]
    low = gain - np.hypot(frame["value"] - frame["low"], frame["base_high"] - frame["base"])
    sign = frame["higher_is_better"].map({True: 1.0, False: -1.0}).astype("float64")
    return frame.assign(
        gain=gain,
        gain_stderr=np.hypot(frame["stderr"], frame["base_stderr"]),
        gain_low=low,
        gain_high=gain + np.hypot(frame["high"] - frame["value"], frame["base"] - frame["base_low"]),
        improvement=gain * sign,
        gain_interval=pd.Series("independent", index=frame.index, dtype="string").mask(low.isna()),
    )


def _why(frame: pd.DataFrame, models: set[str]) -> pd.Series:
    reasons = [
        (frame["missing"].notna() | frame["value"].isna(), NO_SCORE),
        (~frame["model"].isin(models), "the base model has no record"),
        (frame["several"].fillna(False).astype(bool), "several base models have this name"),
        (frame["known"].isna(), "the base model was not scored under this protocol"),
        (frame["base"].isna(), "the base model has no score"),
    ]
    text = np.select([mask.to_numpy(bool) for mask, _ in reasons], [why for _, why in reasons], "")
    return pd.Series(text, index=frame.index, dtype="string").replace("", pd.NA)


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per condition (a cell without its seed) and ``column`` of the primary rows of ``gains``.

    Columns: ``CONDITION``, ``column``, ``metric``, ``filter``, ``benchmark``, ``n`` (questions; missing where seeds
    differ), ``seeds`` (how many have a gain), ``asked_seeds`` (how many there are), ``value``, ``gain``,
    ``improvement`` (means over the seeds that have one), ``gain_low``, ``gain_high``, ``interval``, ``why`` and
    ``early`` (whether any seed's score is an early answer). The interval is the single cell's with one seed, that of
    ``mean_interval`` with more.
    """
    rows = primary_rows(frame)
    keys = [*CONDITION, "column"]
    result = (
        rows.groupby(keys, dropna=False, sort=False)
        .agg(
            metric=("metric", "first"),
            filter=("filter", "first"),
            benchmark=("benchmark", "first"),
            n=("n", lambda n: n.dropna().iloc[0] if n.nunique() == 1 else pd.NA),
            seeds=("gain", "count"),
            asked_seeds=("cell", "nunique"),
            value=("value", "mean"),
            gain=("gain", "mean"),
            improvement=("improvement", "mean"),
            gain_low=("gain_low", "mean"),
            gain_high=("gain_high", "mean"),
            why=("why", "first"),
            gain_interval=("gain_interval", "first"),
            early=("early", lambda early: bool(early.fillna(False).any())),
        )
        .reset_index()
    )
    result["interval"] = result["gain_interval"].map({"paired": "one run, paired by question"}).fillna("one run")
    several = result.index[result["seeds"] > 1]
    by_condition = list(grouped(to_rows(rows), *keys).values()) if len(several) else []
    for index in several:
        mean = mean_gain([row for row in by_condition[index] if not pd.isna(row["gain"])], "seeds")
        for name in ("gain_low", "gain_high", "interval"):
            result.loc[index, name] = mean[name]
    return result.drop(columns=["gain_interval"])


def mean_gain(rows: Sequence[Mapping[str, Any]], over: str) -> dict[str, Any]:
    """Return ``gain``, ``gain_low``, ``gain_high`` and ``interval`` (how it was made) of rows' mean gain.

    Args:
        rows: two at least, each with a gain.
        over: what they differ in, for people.
    """
    found = mean_interval(*([float(row[name]) for row in rows] for name in ("gain", "gain_low", "gain_high")))
    how = f"t over {over}" if found.by_t else f"mean of the intervals of the {over}"
    how = "no interval: all are equal" if math.isnan(found.low) else how
    low, high = metrics.possible_difference(str(rows[0]["metric"]), found.mean, found.low, found.high)
    return {"gain": found.mean, "gain_low": low, "gain_high": high, "interval": how}
