"""Rungs over epochs: what share of the epochs is trained, and how often the best run is found. Rules in ``protocol.md``.

    python benchmarks/search/rungs.py evaluation_result.csv [--orders 20] [--block C|csv]

``promotion``: ours, from the parked checkpoint; ``asha``: Ray's own bracket, which stops; both over runs that arrive one at a
time in a random order; ``ray``: the same bracket over the order that Ray's OptunaSearch suggests. A file of the stated format
(``--block csv``) has the columns ``run``, ``epoch`` and ``max:`` or ``min:`` scores, one row an epoch of a run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from pairs import compare
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.search.optuna import OptunaSearch
from tables import BENCHMARKS, read_frame

from massive_sft.core.errors import InvalidInput, Problem

logging.disable(logging.WARNING)  # Optuna and Ray say something for each study
RUNGS, KEEP, NEAR = (1, 3, 10), 1 / 3, 0.05
FIRST_SEED, MIN_RUNS = 2000, 18
COPIED = ["mbpp-0shot", "gsm8k-0shot", "nq-0shot", "BoolQ-0shot", "mmlu-0shot"]
Values = dict[str, dict[int, float]]


def block_c(path: Path) -> Iterator[tuple[str, Values]]:
    """Yield each benchmark of block C with its runs' values by epoch, masked as the protocol says."""
    frame = read_frame(path)
    frame = frame[(frame.data_size == 1000) & (frame.lr_strategy == "constant") & (frame.data_name != "lima")]
    for name in BENCHMARKS:
        runs: Values = {}
        for (model, data), group in frame.groupby(["model_name", "data_name"]):
            masked = name in COPIED or (name in ("jmmlu-0shot", "cmmlu-0shot") and model == "OLMo-7B-hf")
            values = dict(zip(group.epoch.astype(int), group[name], strict=True))
            if not masked and all(np.isfinite(values.get(rung, np.nan)) for rung in RUNGS):
                runs[f"{model} {data}"] = values
        if len(runs) >= MIN_RUNS:
            yield name, runs


def of_csv(path: Path) -> Iterator[tuple[str, Values]]:
    """Yield each objective of a file of the stated format with its runs' values by epoch."""
    frame = read_frame(path)
    scores = [name for name in frame.columns if name.startswith(("max:", "min:"))]
    if not {"run", "epoch"} <= set(frame.columns) or not scores:
        rule = "must have the columns run, epoch and at least one of max:NAME, min:NAME"
        raise InvalidInput(Problem(str(path), rule, ", ".join(map(str, frame.columns))))
    for column in scores:
        sign = 1 if column.startswith("max:") else -1
        groups = frame.dropna(subset=[column]).groupby("run")
        runs = {
            str(run): dict(zip(group.epoch.astype(int), sign * group[column], strict=True)) for run, group in groups
        }
        whole = {run: values for run, values in runs.items() if set(RUNGS) <= set(values)}
        if not whole:
            raise InvalidInput(Problem(f"{path}: {column}", f"must have a run with the epochs {RUNGS}"))
        yield column, whole


def promoted(runs: Values, order: list[str]) -> tuple[int, float]:
    """Return the epochs trained and the best value at the last rung, promoting from parked checkpoints.

    The rule is that of ``massive_sft/search/promoting.py``: the best third of those that reached a rung goes on, highest
    rung first, and one that was not among them yet may be later; of equal values the earlier goes first.
    """
    reached: list[list[str]] = [[] for _ in RUNGS]
    epochs = 0

    def reach(run: str, place: int) -> None:
        nonlocal epochs
        reached[place].append(run)
        epochs += RUNGS[place] - (RUNGS[place - 1] if place else 0)

    def due() -> tuple[str, int] | None:
        for place in reversed(range(len(RUNGS) - 1)):
            here = sorted(reached[place], key=lambda run: (-runs[run][RUNGS[place]], order.index(run)))
            for run in here[: int(len(here) * KEEP + 1e-9)]:
                if run not in reached[place + 1]:
                    return run, place + 1
        return None

    for run in order:
        reach(run, 0)
        while (found := due()) is not None:
            reach(*found)
    return epochs, max((runs[run][RUNGS[-1]] for run in reached[-1]), default=-np.inf)


def stopped(runs: Values, order: list[str]) -> tuple[int, float]:
    """Return the same of Ray's ASHA bracket, which stops what is not among the best when it arrives."""
    bracket = _Bracket(min_t=RUNGS[0], max_t=RUNGS[-1], reduction_factor=1 / KEEP, s=0)
    epochs, best = 0, -np.inf
    for run in order:
        trial = SimpleNamespace(trial_id=run)
        for place, rung in enumerate(RUNGS):
            epochs += rung - (RUNGS[place - 1] if place else 0)
            if rung == RUNGS[-1]:
                best = max(best, runs[run][rung])
            elif bracket.on_result(trial, rung, runs[run][rung]) == "STOP":
                break
    return epochs, best


def suggested(runs: Values, seed: int) -> list[str]:
    """Return the runs in the order that Ray's OptunaSearch suggests them, told their values at the first rung."""
    from ray import tune

    names = [name.split(" ", 1) for name in sorted(runs)]
    parts = [sorted(set(part)) for part in zip(*names, strict=True)]
    space = {"model": tune.choice(parts[0]), "data": tune.choice(parts[-1])}
    search = OptunaSearch(space, metric="score", mode="max", seed=seed)
    order: list[str] = []
    generator = np.random.default_rng(seed)
    while len(order) < len(runs):
        trial = f"t{len(order)}-{generator.integers(1 << 30)}"
        config = search.suggest(trial)
        run = f"{config['model']} {config['data']}"
        if run not in runs or run in order:
            search.on_trial_complete(trial, error=True)
            run = str(generator.choice([name for name in runs if name not in order]))
        else:
            search.on_trial_complete(trial, {"score": runs[run][RUNGS[0]]})
        order.append(run)
    return order


def main() -> None:
    """Print the epochs and the regret of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--block", choices=["C", "csv"], default="C")
    args = parser.parse_args()
    studies = list(block_c(args.file) if args.block == "C" else of_csv(args.file))
    print(f"{len(studies)} benchmarks: {', '.join(f'{name} ({len(runs)} runs)' for name, runs in studies)}")
    named = all(" " in run for _, runs in studies for run in runs)
    figures: dict[str, dict[str, np.ndarray]] = {}
    for method in ("promotion", "asha", *(["ray"] if named else [])):
        shares, regrets = [], []
        for _, runs in studies:
            best = max(values[RUNGS[-1]] for values in runs.values())
            for seed in range(FIRST_SEED, FIRST_SEED + args.orders):
                shuffled = np.random.default_rng(seed).permutation(sorted(runs)).tolist()
                order = suggested(runs, seed) if method == "ray" else shuffled
                epochs, found = (promoted if method == "promotion" else stopped)(runs, order)
                shares.append(epochs / (RUNGS[-1] * len(runs)))
                regrets.append((best - found) / abs(best))
        near = np.mean(np.array(regrets) <= NEAR)
        print(
            f"{method}: {np.mean(shares):.1%} of the epochs, within 5 % in {near:.1%}, mean regret {np.mean(regrets):.4f}"
        )
        by_benchmark = (len(studies), args.orders)
        figures[method] = {"epochs": np.reshape(shares, by_benchmark), "regret": np.reshape(regrets, by_benchmark)}
    compare(figures, "benchmarks")


if __name__ == "__main__":
    try:
        main()
    except InvalidInput as problem:
        sys.exit(str(problem))
