"""What a reader must know before trusting a table: outcomes that are none, unequal comparisons, copied cells."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from massive_sft.core.wording import counted
from massive_sft.ledger.record_warnings import MUCH_TRUNCATED, ROUNDING_FLOORS
from massive_sft.study.frames import BASE, COORDINATES
from massive_sft.study.tables import primary_rows

LEAST_EQUAL, LEAST_SHARE = 4, 0.25
"""Fewer equal telling scores, or a smaller share of the benchmarks both cells have, never make them look copied."""
RARE = 200
"""A score tells something when at most two cells, and one more for each so many cells of the table, have it."""
_AXES = {"data": "mixture"}  # the sweep file's word
LEAST_OWN = 2
"""Scores that only the cells of the group have."""
SURPRISE = 3.0
"""Decimal digits by which equal scores must be less likely than one such pair by chance in the whole table."""


@dataclass(frozen=True)
class Finding:
    """Something that limits what the numbers can say.

    Attributes:
        kind: FAILED, DIVERGED, PARTIAL, copied, layout, base, truncated, dropped, rounding, engine.
        text: a sentence for people.
        cells: the ids of the cells it is about.
    """

    kind: str
    text: str
    cells: tuple[str, ...]


def collect_findings(cells: pd.DataFrame, scores: pd.DataFrame, gains: pd.DataFrame) -> list[Finding]:
    """Return everything worth warning of, the gravest first.

    Args:
        cells, scores, gains: of ``frames.cell_frame``, ``frames.tidy`` and ``tables.gains``, from the same records.
    """
    return [
        *_errors(cells, "FAILED"),
        *find_copied(scores),
        *_without_base(gains),
        *_errors(cells, "DIVERGED"),
        *_partial(cells, scores),
        *_truncated(cells),
        *_rounded_away(cells),
        *_scored_plainly(cells),
        *_errors(cells, "PRUNED"),
        *mixed_layouts(cells),
    ]


def cell_name(row: pd.Series) -> str:
    """Return a cell's coordinates for people, from a row of any frame that has them."""
    if row["method"] == BASE:
        return f"{row['model']} (base)"
    parts = [row["model"], row["data"], row["setting"], row["schedule"], f"epoch {row['epoch']}"]
    seed = [] if pd.isna(row["seed"]) else [f"seed {row['seed']}"]
    return " ".join(str(part) for part in (*parts, *seed, row["variant"]) if not pd.isna(part) and part != "")


def _errors(cells: pd.DataFrame, status: str) -> list[Finding]:
    rows = cells[cells["status"] == status]
    return [
        Finding(
            status,
            f"{cell_name(row)}: {row['error'] if not pd.isna(row['error']) else 'no reason given'}",
            (row["cell"],),
        )
        for _, row in rows.iterrows()
    ]


def _partial(cells: pd.DataFrame, scores: pd.DataFrame) -> list[Finding]:
    missing = scores[scores["missing"].notna() & (scores["status"] == "PARTIAL")]
    return [
        Finding("PARTIAL", f"{benchmark} is missing in {counted(len(rows), 'cell')}: {why}", tuple(rows["cell"]))
        for (benchmark, why), rows in missing.groupby(["benchmark", "missing"])
    ]


def _rounded_away(cells: pd.DataFrame) -> list[Finding]:
    lost = cells[(cells["rounding_floor"] > 0) & (cells["layer_change"] < ROUNDING_FLOORS * cells["rounding_floor"])]
    findings = []
    for (model, setting), rows in lost.groupby(["model", "setting"]):
        least, floor = rows["layer_change"].min(), rows["rounding_floor"].max()
        text = f"{model} {setting}: the layer change of {counted(len(rows), 'cell')} ({least:.2g} at least) is below "
        text += f"{ROUNDING_FLOORS:g} x what rounding to bf16 alone makes ({floor:.2g}): "
        text += "their training may be too small for the precision that weights are stored in"
        findings.append(Finding("rounding", text, tuple(rows["cell"])))
    return findings


def _scored_plainly(cells: pd.DataFrame) -> list[Finding]:
    findings = []
    for model, rows in cells[cells["scored_plainly"].notna()].groupby("model"):
        text = f"{model}: {counted(len(rows), 'cell')} scored by the plain engine ({rows['scored_plainly'].iloc[0]}): "
        text += "beside cells that the tree engine scored, differences of the size of rounding are the engines'"
        findings.append(Finding("engine", text, tuple(rows["cell"])))
    return findings


def _truncated(cells: pd.DataFrame) -> list[Finding]:
    trained = cells[cells["method"] != BASE]
    drawn = trained["samples"].astype("float64") + trained["dropped"].astype("float64").fillna(0)
    findings = []
    for column, what in (("truncated", "lost text to"), ("dropped", "were left out, being longer than")):
        share = trained[column].astype("float64") / drawn
        much = trained.assign(share=share, drawn=drawn)[share > MUCH_TRUNCATED]
        for (model, mixture), rows in much.groupby(["model", "data"]):
            worst = rows.sort_values("share").iloc[-1]
            text = (
                f"{model}: {worst[column]} of {worst['drawn']:.0f} samples of {mixture} ({worst['share']:.0%}) {what} "
            )
            text += "the maximum length; the model was not trained on what the mixture says"
            findings.append(Finding(column, text, tuple(rows["cell"])))
    return findings


def _without_base(gains: pd.DataFrame) -> list[Finding]:
    rows = primary_rows(gains)
    rows = rows[rows["why"].notna() & (rows["why"] != "no score")]
    return [
        Finding(
            "base",
            f"{model}: no gain on {counted(part['column'].nunique(), 'benchmark')}, because {why}",
            tuple(part["cell"].unique()),
        )
        for (model, why), part in rows.groupby(["model", "why"])
    ]


def mixed_layouts(cells: pd.DataFrame) -> list[Finding]:
    """Find models whose cells were trained under several layouts: bit-identity is promised within one only."""
    findings = []
    for model, rows in cells[cells["layout"].notna()].groupby("model"):
        layouts = [json.loads(text) for text in rows["layout"].unique()]
        if len(layouts) < 2:
            continue
        differing = {
            key: [layout.get(key) for layout in layouts] for key in sorted({k for fields in layouts for k in fields})
        }
        texts = [
            f"{key} {' / '.join(dict.fromkeys(map(str, values)))}"
            for key, values in differing.items()
            if len({json.dumps(value, sort_keys=True) for value in values}) > 1
        ]
        text = f"{model}: {counted(len(rows), 'cell')} trained under {len(layouts)} layouts ({', '.join(texts)}): "
        text += "differences of the size of rounding are not only the settings'"
        findings.append(Finding("layout", text, tuple(rows["cell"])))
    return findings


def find_copied(scores: pd.DataFrame) -> list[Finding]:
    """Find groups of cells that have exactly the same scores on more benchmarks than chance explains.

    Scores that many cells have (0, chance level, coarse ratings) tell nothing. For the others, the share of cell
    pairs with equal scores on the benchmark is the chance of one more equal pair. Two cells look copied when the
    product of these chances over the benchmarks on which they agree, times the number of pairs, is below
    ``10 ** -SURPRISE``; they agree on ``LEAST_EQUAL`` telling benchmarks and ``LEAST_SHARE`` of those that both have;
    and ``LEAST_OWN`` of the equal scores are those of no other cell, which cells that are merely alike seldom have.

    Pairs that differ in the same coordinates by the same values, on the same benchmarks, are one finding: a whole
    evaluation was copied.
    """
    rows = primary_rows(scores)
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return []
    wide = rows.pivot(index="cell", columns="column", values="value")
    about = {str(row["cell"]): row for _, row in rows.drop_duplicates("cell").iterrows()}
    cells = [about[str(cell)] for cell in wide.index]
    values = wide.to_numpy(np.float64)
    together: dict[Any, list[tuple[tuple[int, ...], tuple[int, int]]]] = defaultdict(list)
    for group, counts in _groups(_equal_pairs(values)):
        key = group if len(group) > 2 else _difference(cells[group[0]], cells[group[1]])
        together[key].append((group, counts))
    findings = []
    for members in together.values():
        shared = np.logical_and.reduce([(values[list(group)] == values[group[0]]).all(axis=0) for group, _ in members])
        columns = [str(cell_name) for cell_name in wide.columns[shared]]
        if len(members) > 1 and len(columns) >= LEAST_EQUAL:
            findings.append((len(columns), _copied_alike([[cells[i] for i in group] for group, _ in members], columns)))
            continue
        for group, (equal, both) in members:
            same = wide.columns[(values[list(group)] == values[group[0]]).all(axis=0)]
            findings.append(
                (equal, _copied([cells[i] for i in group], equal, both, [str(cell_name) for cell_name in same]))
            )
    return [item for _, item in sorted(findings, key=lambda pair: -pair[0])]


def _difference(first: pd.Series, second: pd.Series) -> tuple[tuple[str, str, str], ...]:
    """Return the coordinates in which two cells differ, with both values, whichever cell comes first."""
    pairs = [(axis, *(_text(row[axis]) for row in (first, second))) for axis in COORDINATES]
    differing = [(axis, left, right) for axis, left, right in pairs if left != right]
    return min(tuple(differing), tuple((axis, right, left) for axis, left, right in differing))


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _copied(members: list[pd.Series], equal: int, both: int, columns: list[str]) -> Finding:
    names = [cell_name(row) for row in members]
    text = " and ".join(names) if len(names) == 2 else f"{len(names)} cells ({'; '.join(names)})"
    text += f" have identical scores on {equal} of {both} benchmarks"
    text += f" ({', '.join(columns)})" if equal < both else ""
    text += ": one may be a copy of the other"
    models = [str(row["model"]) for row in members if row["method"] == BASE]
    if len(models) > 1:
        text += f", so the gains of {' or '.join(models)} on these benchmarks are invalid"
    return Finding("copied", text, tuple(str(row["cell"]) for row in members))


def _copied_alike(pairs: list[list[pd.Series]], columns: list[str]) -> Finding:
    """Return the finding on pairs of cells that differ alike and agree on the same benchmarks."""
    first, second = pairs[0]
    differing = [
        f"{_AXES.get(axis, axis)} ({left or 'none'}, {right or 'none'})"
        for axis, left, right in _difference(first, second)
    ]
    models = Counter(" and ".join(dict.fromkeys(str(row["model"]) for row in pair)) for pair in pairs)
    text = f"{len(pairs)} pairs of cells ({', '.join(f'{model}: {count}' for model, count in sorted(models.items()))})"
    text += f" that differ in {' and '.join(differing)} have identical scores on the same {len(columns)} benchmarks"
    text += f" ({', '.join(columns)}): one of each pair may be a copy of the other, so there at most one of its two "
    text += "gains is valid, and the pair says nothing of that difference"
    return Finding("copied", text, tuple(str(row["cell"]) for pair in pairs for row in pair))


def _equal_pairs(values: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (equal, common) columns of the pairs of rows that agree more than chance explains.

    Args:
        values: float64, shape (cells, benchmarks), NaN where missing.
    """
    cells = len(values)
    surprise = np.zeros((cells, cells), dtype=np.float32)
    equal, telling, own = np.zeros((3, cells, cells), dtype=np.int16)
    rare = []
    for column in values.T:
        present = np.flatnonzero(np.isfinite(column))
        _, codes, counts = np.unique(column[present], return_inverse=True, return_counts=True)
        agreeing = float((counts * (counts - 1)).sum())
        if not agreeing:
            continue
        digits = -math.log10(agreeing / (len(present) * (len(present) - 1)))
        for code in np.flatnonzero(counts > 1):
            pairs = np.ix_(members := present[codes == code], members)
            equal[pairs] += 1
            if len(members) <= 2 + cells // RARE:
                surprise[pairs] += digits
                telling[pairs] += 1
                rare.append(pairs)
    known = np.isfinite(values).astype(np.int16)
    common = known @ known.T
    enough = (telling >= LEAST_EQUAL) & (equal >= LEAST_SHARE * common)
    unlikely = surprise > SURPRISE + math.log10(max(cells * (cells - 1) / 2, 1))
    suspect = enough & unlikely | np.eye(cells, dtype=bool)
    for pairs in rare:
        own[pairs] += suspect[pairs].all()
    first, second = np.nonzero(np.triu(suspect & (own >= LEAST_OWN), 1))
    return {(int(a), int(b)): (int(equal[a, b]), int(common[a, b])) for a, b in zip(first, second, strict=True)}


def _groups(pairs: dict[tuple[int, int], tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """Join pairs into groups all of whose members agree pairwise, with the counts of the pair that agrees least."""
    partners: dict[int, set[int]] = defaultdict(set)
    for first, second in pairs:
        partners[first].add(second)
        partners[second].add(first)
    joined: dict[tuple[int, ...], tuple[int, int]] = {}
    for pair in pairs:
        together = {pair[0]} | partners[pair[0]]
        whole = all(together <= {member} | partners[member] for member in together)
        group = tuple(sorted(together)) if whole else pair
        joined[group] = min(joined.get(group, pairs[pair]), pairs[pair])
    return list(joined.items())
