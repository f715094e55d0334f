"""Searches over published tables, offline: what share of a pool each method needs. The rules are in ``protocol.md``.

    python benchmarks/search/run.py models --table release evaluation_result.csv [--methods ours random tpe] [--seeds 10]
    python benchmarks/search/run.py winner|together --table release evaluation_result.csv
    python benchmarks/search/run.py mixtures --table admire admire_0.5b.csv
    python benchmarks/search/run.py transfer --table tinker tinker_dev.csv
    python benchmarks/search/run.py models --table csv any.csv

``models``: one answer for each model, one objective at a time; ``winner``: one answer; ``together``: one sequence for all
objectives; ``mixtures``: one at a time, normalised regret; ``transfer``: a model from those of other organisations.
Each table is a form and its files; ``tables.py`` states the format that any table may have.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from methods import METHODS
from pairs import compare
from pools import Study, first_below, mean_curve, run
from tables import Table, read

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.search.observations import Outcome, Target
from massive_sft.search.surrogate.asking import propose

FIRST_SEED = 2000
MOST = 0.6  # of a pool that is searched
EVALUATIONS = 40  # of mixtures


def models(table: Table, each: str | None, method: str, seeds: range, stop: bool) -> np.ndarray:
    """Print the share of cells at which the mean regret is small, one objective at a time.

    Return the mean regret over each study [objectives, seeds], as the other studies do.
    """
    curves, by_objective, judged, regrets = [], {}, [], []
    size = len(table.values)
    for objective in table.objectives:
        pool = table.only(objective)
        studies = [run(pool, each, method, seed, int(MOST * size), stop=stop and method == "ours") for seed in seeds]
        by_objective[objective] = mean_curve([study.regret[:, 0] for study in studies])
        curves += [study.regret[:, 0] for study in studies]
        judged += studies
        regrets.append([study.regret[:, 0].mean() for study in studies])
    mean = mean_curve(curves)
    needed = {level: first_below(mean, level) for level in (0.05, 0.01)}
    print(
        f"{method}: mean regret <= 5 / 1 % at {share(needed[0.05], size)} / {share(needed[0.01], size)} of {size} cells"
    )
    print("  5 % by objective: ", {name: share(first_below(curve, 0.05), size) for name, curve in by_objective.items()})
    print(
        "  regret at 18 / 24 / 33 / 46 %:",
        [round(after(mean, int(at * size)), 4) for at in (0.18, 0.24, 0.33, 0.46)],
    )
    if stop and method == "ours":
        stops(judged, size)
    return np.array(regrets)


def stops(studies: list[Study], size: int) -> None:
    """Print how often the stop rule was right, and what it cost beside the oracle."""
    right, cells, oracle = [], [], []
    for study in studies:
        at = next((asked for asked, probability in study.said if probability >= 0.9), None)
        if at is not None:
            right.append(study.regret[at - 1, 0] <= 0.05)
            cells.append(at)
            oracle.append(
                next(asked for asked, _ in study.said if study.regret[asked - 1, 0] <= 0.05) if right[-1] else at
            )
    count, z = len(right), 1.96
    if not count:
        print(f"  stop: none of {len(studies)} stopped")
        return
    rate = float(np.mean(right))
    center = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    print(
        f"  stop at .9: {count} of {len(studies)} stopped, true in {rate:.3f} [{center - half:.3f}, {center + half:.3f}], "
        f"at {np.mean(cells) / size:.1%} of the cells, {np.sum(cells) / np.sum(oracle):.2f} times the oracle's"
    )


def together(table: Table, each: str, method: str, seeds: range) -> np.ndarray:
    """Print the share of cells at which each objective's mean regret is small, one sequence for all of them."""
    size = len(table.values)
    studies = [run(table, each, method, seed, int(0.5 * size)) for seed in seeds]
    mean = mean_curve([study.regret for study in studies])
    needed = [first_below(mean[:, column], 0.05) or size for column in range(len(table.objectives))]
    print(
        f"{method}: one sequence: 10th objective <= 5 % at {share(sorted(needed)[9] if len(needed) > 9 else max(needed), size)}"
    )
    print("  ", {name: share(at, size) for name, at in zip(table.objectives, needed, strict=True)})
    return np.array([study.regret.mean(axis=0) for study in studies]).T


def mixtures(table: Table, method: str, seeds: range) -> np.ndarray:
    """Print after how many evaluations the mean normalised regret is small, of each objective."""
    regrets = []
    for objective in table.objectives:
        pool = table.only(objective)
        studies = [run(pool, None, method, seed, EVALUATIONS, batch=1) for seed in seeds]
        mean = mean_curve([study.normalised[:, 0] for study in studies])
        needed = [first_below(mean, level) or f"> {EVALUATIONS}" for level in (0.2, 0.1, 0.05)]
        print(
            f"{method}: {pool.name} ({len(pool.values)}): 20 / 10 / 5 % after {needed}, at 20: {after(mean, 20):.3f}, at 40: {mean[-1]:.3f}"
        )
        regrets.append([study.normalised.mean() for study in studies])
    return np.array(regrets)


def transfer(table: Table) -> None:
    """Print the share of models near their best after some runs, all models of their organisation held out."""
    names = np.array(table.space.levels_of("model"))
    organisation = np.array([name.split("/")[0] for name in names])
    excess = []
    for name in sorted(set(names)):
        own = [int(row) for row in np.flatnonzero(names == name)]
        told = [
            Outcome(int(row), tuple(table.values[row])) for row in np.flatnonzero(organisation != name.split("/")[0])
        ]
        best, found = table.values[own, 0].max(), []
        for _ in range(min(4, len(own))):
            chosen = propose(table.space, Target(table.objectives, "model"), told, 0, allowed=own)[0].candidate
            told.append(Outcome(chosen, tuple(table.values[chosen])))
            found.append(
                (best - max(table.values[outcome.candidate, 0] for outcome in told if outcome.candidate in own))
                / abs(best)
            )
        excess.append(found + [found[-1]] * (4 - len(found)))
    near = (np.array(excess) <= 0.005).mean(axis=0)
    print(
        f"ours: {table.objectives[0]}: {len(excess)} models, within 0.5 % after 1 / 2 / 4 runs: {[round(float(near[at - 1]), 3) for at in (1, 2, 4)]}"
    )
    print("  mean excess:", np.mean(excess, axis=0).round(4).tolist())


def after(curve: np.ndarray, count: int) -> float:
    """Return a curve's value after so many candidates; of a shorter one its last."""
    return float(curve[min(max(count, 1), len(curve)) - 1])


def share(count: int | None, size: int) -> str:
    """Return a count as a share of a pool."""
    return "never" if count is None else f"{count / size:.1%}"


def main() -> None:
    """Run one study of one table with some methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["models", "winner", "together", "mixtures", "transfer"])
    parser.add_argument("--table", nargs="+", required=True, metavar=("FORM", "FILE"))
    parser.add_argument("--methods", nargs="+", default=["ours"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--stop", action="store_true", help="also judge after each batch whether to stop")
    args = parser.parse_args()
    table = read(args.table[0], [Path(path) for path in args.table[1:]])
    if args.seeds < 1:
        raise InvalidInput(Problem("--seeds", "must be >= 1", args.seeds))
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    regrets: dict[str, np.ndarray] = {}
    for method in args.methods:
        began = time.process_time()
        if args.study in ("models", "winner"):
            regrets[method] = models(table, "model" if args.study == "models" else None, method, seeds, args.stop)
        elif args.study == "together":
            regrets[method] = together(table, "model", method, seeds)
        elif args.study == "mixtures":
            regrets[method] = mixtures(table, method, seeds)
        else:
            for objective in table.objectives:
                transfer(table.only(objective))
        print(f"  {time.process_time() - began:.0f} s of the processor", flush=True)
    if regrets:
        compare({method: {"mean regret": found} for method, found in regrets.items()}, "objectives")


if __name__ == "__main__":
    try:
        main()
    except InvalidInput as problem:
        sys.exit(str(problem))
