"""Studies over pools: what is asked in which order, and the regret after each candidate. ``protocol.md`` has the rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from methods import METHODS, outcomes_of
from tables import Table

from massive_sft.search.observations import Target
from massive_sft.search.surrogate.stopping import judge

BATCH = 6
START_MIXTURES = 8


@dataclass
class Study:
    """One search of a pool.

    Attributes:
        asked: candidates in the order they were asked in.
        regret: relative, after each of them, mean over the answers of each objective [asked, objectives].
        normalised: likewise, against the median.
        said: after how many candidates which probability of a regret <= 5 % was said.
    """

    asked: list[int]
    regret: np.ndarray
    normalised: np.ndarray
    said: list[tuple[int, float]]


def start_of(table: Table, seed: int, each: str | None) -> list[int]:
    """Return the start that all methods share: each model once with the data shuffled over them, or random rows."""
    generator = np.random.default_rng(seed)
    if not any(factor.name == "data" for factor in table.space.factors):
        return generator.permutation(len(table.values))[:START_MIXTURES].tolist()
    models, data = table.space.levels_of("model"), table.space.levels_of("data")
    names, sets = sorted(set(models)), sorted(set(data))
    chosen = []
    order = [sets[place % len(sets)] for place in generator.permutation(len(names))]
    for model, wanted in zip(generator.permutation(names), order, strict=True):
        rows = [row for row in range(len(models)) if models[row] == model]
        fitting = [row for row in rows if data[row] == wanted] or rows
        chosen.append(int(generator.choice(fitting)))
    return chosen


def regrets(table: Table, each: str | None, asked: list[int], against_median: bool) -> np.ndarray:
    """Return the regret after each candidate asked [asked, objectives]; 1 for an answer that has none yet."""
    levels = table.levels(each)
    result = np.zeros((len(asked), len(table.objectives)))
    for column in range(len(table.objectives)):
        values = table.values[:, column]
        for level in range(levels.max() + 1):
            pool = values[levels == level]
            if np.isnan(pool).all():
                continue
            best = np.nanmax(pool)
            seen = np.array([values[row] if levels[row] == level else np.nan for row in asked])
            so_far = np.fmax.accumulate(seen)
            scale = best - np.nanmedian(pool) if against_median else abs(best)
            regret = (best - so_far) / scale if scale > 0 else np.zeros(len(asked))
            result[:, column] += np.where(np.isnan(regret), 1.0, regret)
        present = sum(not np.isnan(values[levels == level]).all() for level in range(levels.max() + 1))
        result[:, column] /= present
    return result


def run(
    table: Table, each: str | None, method: str, seed: int, upto: int, batch: int = BATCH, stop: bool = False
) -> Study:
    """Search a pool until ``upto`` candidates are asked."""
    asked, said = start_of(table, seed, each), []
    while len(asked) < min(upto, len(table.values)):
        told = {row: table.values[row] for row in asked}
        if stop:
            verdict = judge(table.space, Target(table.objectives, each), outcomes_of(told, []), seed, 0.05, 0.9)
            said.append((len(asked), verdict.probability))
        asked += METHODS[method](table, each, told, [], seed, batch)
    return Study(asked, regrets(table, each, asked, False), regrets(table, each, asked, True), said)


def first_below(curve: np.ndarray, level: float) -> int | None:
    """Return after how many candidates a curve is first at most the level."""
    below = np.flatnonzero(curve <= level)
    return int(below[0]) + 1 if len(below) else None


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """Return the mean of curves, cut to the shortest."""
    shortest = min(map(len, curves))
    return np.mean([curve[:shortest] for curve in curves], axis=0)
