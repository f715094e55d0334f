"""What a reader must know before trusting a table: outcomes that are none, unequal comparisons, copied cells."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from massive_sft.study.frames import BASE
from massive_sft.study.tables import primary

LEAST_EQUAL, LEAST_SHARE = 4, 0.25
"""Fewer equal telling scores, or a smaller share of the benchmarks both cells have, never make them look copied."""
RARE = 200
"""A score tells something when at most two cells, and one more for each so many cells of the table, have it."""
SURPRISE = 3.0
"""Decimal digits by which equal scores must be less likely than one such pair by chance in the whole table."""


@dataclass(frozen=True)
class Finding:
    """Something that limits what the numbers can say.

    Attributes:
        kind: FAILED, DIVERGED, PARTIAL, copied, layout, base.
        text: a sentence for people.
        cells: the ids of the cells it is about.
    """

    kind: str
    text: str
    cells: tuple[str, ...]


def findings(cells: pd.DataFrame, scores: pd.DataFrame, gains: pd.DataFrame) -> list[Finding]:
    """Return everything worth warning of, the gravest first.

    Args:
        cells, scores, gains: of ``frames.cells``, ``frames.tidy`` and ``tables.gains``, from the same records.
    """
    return [
        *_errors(cells, "FAILED"),
        *copied(scores),
        *_without_base(gains),
        *_errors(cells, "DIVERGED"),
        *_partial(cells, scores),
        *_errors(cells, "PRUNED"),
        *mixed_layouts(cells),
    ]


def name(row: pd.Series) -> str:
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
            status, f"{name(row)}: {row['error'] if not pd.isna(row['error']) else 'no reason given'}", (row["cell"],)
        )
        for _, row in rows.iterrows()
    ]


def _partial(cells: pd.DataFrame, scores: pd.DataFrame) -> list[Finding]:
    missing = scores[scores["missing"].notna() & (scores["status"] == "PARTIAL")]
    return [
        Finding("PARTIAL", f"{benchmark} is missing in {len(rows)} cells: {why}", tuple(rows["cell"]))
        for (benchmark, why), rows in missing.groupby(["benchmark", "missing"])
    ]


def _without_base(gains: pd.DataFrame) -> list[Finding]:
    rows = primary(gains)
    rows = rows[rows["why"].notna() & (rows["why"] != "no score")]
    return [
        Finding(
            "base",
            f"{model}: no gain on {part['column'].nunique()} benchmarks, because {why}",
            tuple(part["cell"].unique()),
        )
        for (model, why), part in rows.groupby(["model", "why"])
    ]


def mixed_layouts(cells: pd.DataFrame) -> list[Finding]:
    """Find models whose cells were trained under several layouts: bit-identity is promised within one only."""
    found = []
    for model, rows in cells[cells["layout"].notna()].groupby("model"):
        layouts = [json.loads(text) for text in rows["layout"].unique()]
        if len(layouts) < 2:
            continue
        differing = {
            key: [layout.get(key) for layout in layouts] for key in sorted({k for one in layouts for k in one})
        }
        texts = [
            f"{key} {' / '.join(dict.fromkeys(map(str, values)))}"
            for key, values in differing.items()
            if len({json.dumps(value, sort_keys=True) for value in values}) > 1
        ]
        text = f"{model}: {len(rows)} cells were trained under {len(layouts)} layouts ({', '.join(texts)}): "
        text += "differences of the size of rounding are not only the settings'"
        found.append(Finding("layout", text, tuple(rows["cell"])))
    return found


def copied(scores: pd.DataFrame) -> list[Finding]:
    """Find groups of cells that have exactly the same scores on more benchmarks than chance explains.

    Scores that many cells have (0, chance level, coarse ratings) tell nothing. For the others, the share of cell
    pairs with equal scores on the benchmark is the chance of one more equal pair. Two cells look copied when the
    product of these chances over the benchmarks on which they agree, times the number of pairs, is below
    ``10 ** -SURPRISE``, and they agree on ``LEAST_EQUAL`` benchmarks and ``LEAST_SHARE`` of those that both have.
    """
    rows = primary(scores)
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return []
    wide = rows.pivot(index="cell", columns="column", values="value")
    names = {row["cell"]: name(row) for _, row in rows.drop_duplicates("cell").iterrows()}
    ids = [str(cell) for cell in wide.index]
    found = []
    for group, (equal, both) in sorted(_groups(_equal_pairs(wide.to_numpy(np.float64))), key=lambda item: -item[1][0]):
        members = tuple(ids[index] for index in group)
        listed = [names[cell] for cell in members]
        text = " and ".join(listed) if len(listed) == 2 else f"{len(listed)} cells ({'; '.join(listed)})"
        text += f" have identical scores on {equal} of {both} benchmarks: one may be a copy of the other"
        found.append(Finding("copied", text, members))
    return found


def _equal_pairs(values: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (equal, common) columns of the pairs of rows that agree more than chance explains.

    Args:
        values: float64, shape (cells, benchmarks), NaN where missing.
    """
    cells = len(values)
    surprise = np.zeros((cells, cells), dtype=np.float32)
    equal, telling = np.zeros((2, cells, cells), dtype=np.int16)
    for column in values.T:
        present = np.flatnonzero(np.isfinite(column))
        _, codes, counts = np.unique(column[present], return_inverse=True, return_counts=True)
        agreeing = float((counts * (counts - 1)).sum())
        if not agreeing:
            continue
        digits = -math.log10(agreeing / (len(present) * (len(present) - 1)))
        for code in np.flatnonzero(counts > 1):
            members = present[codes == code]
            pairs = np.ix_(members, members)
            equal[pairs] += 1
            if len(members) <= 2 + cells // RARE:
                surprise[pairs] += digits
                telling[pairs] += 1
    known = np.isfinite(values).astype(np.int16)
    common = known @ known.T
    enough = (telling >= LEAST_EQUAL) & (equal >= LEAST_SHARE * common)
    unlikely = surprise > SURPRISE + math.log10(max(cells * (cells - 1) / 2, 1))
    first, second = np.nonzero(np.triu(enough & unlikely, 1))
    return {(int(a), int(b)): (int(equal[a, b]), int(common[a, b])) for a, b in zip(first, second, strict=True)}


def _groups(pairs: dict[tuple[int, int], tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """Join pairs into groups all of whose members agree pairwise, with the counts of the pair that agrees least."""
    partners: dict[int, set[int]] = defaultdict(set)
    for first, second in pairs:
        partners[first].add(second)
        partners[second].add(first)
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for pair in pairs:
        together = {pair[0]} | partners[pair[0]]
        whole = all(together <= {member} | partners[member] for member in together)
        group = tuple(sorted(together)) if whole else pair
        found[group] = min(found.get(group, pairs[pair]), pairs[pair])
    return list(found.items())
