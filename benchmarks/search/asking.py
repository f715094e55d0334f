"""What a decision takes: an ask of each sampler, and the resumption of a long search, in seconds of the processor.

    python benchmarks/search/asking.py [--repeats 5]

Seconds of the processor hang little on what else the machine does. The first ask in a process, which imports, is beside
the others. Results are drawn, for what an ask takes hangs on how many there are, not on what they are.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from throughput import planned

from massive_sft.ledger.storage import Folder
from massive_sft.search import proposing
from massive_sft.search.decider import Decider
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.observations import Factor, Outcome, Space, Target
from massive_sft.search.outcomes import Outcome as Recorded
from massive_sft.search.rules import Decision
from massive_sft.search.space import Axis
from massive_sft.search.surrogate.asking import propose

CANDIDATES, RESULTS = 4096, 300
DATASETS, MODELS = 19, 16
DECISIONS, AT_ONCE = 1000, 8
AXES = (
    Axis("lr", "log", ends=(1e-6, 1e-3)),
    Axis("batch", "ordered", values=(16, 32, 64, 128)),
    Axis("lora.rank", "ordered", values=(4, 8, 16, 32, 64, 128)),
    Axis("template", "names", values=("paper", "plain"), contents=("paper", "plain")),
)


def mixtures() -> Space:
    """Return mixtures of datasets."""
    names = tuple(f"data{index}" for index in range(DATASETS))
    shares = np.random.default_rng(0).dirichlet(np.ones(DATASETS), CANDIDATES).tolist()
    candidates = tuple((dict(zip(names, row, strict=True)),) for row in shares)
    return Space((Factor("mixture", "mixture", names),), candidates)


def settings() -> Space:
    """Return models x learning rates x ranks."""
    models = tuple(f"model{index}" for index in range(MODELS))
    factors = (
        Factor("model", "category", models),
        Factor("lr", "number", log=True),
        Factor("rank", "number", log=True),
    )
    rates, ranks = np.geomspace(1e-6, 1e-3, 32).tolist(), [2.0**power for power in range(1, 9)]
    return Space(factors, tuple((model, rate, rank) for model in models for rate in rates for rank in ranks))


def own(space: Space, target: Target) -> Callable[[int], object]:
    """Return an ask of the surrogate."""
    drawn = np.random.default_rng(1)
    tried = drawn.permutation(len(space.candidates))[:RESULTS].tolist()
    told = [Outcome(candidate, (value,)) for candidate, value in zip(tried, drawn.random(RESULTS), strict=True)]
    return lambda seed: propose(space, target, told, seed)


def tpe(results: int) -> Callable[[int], object]:
    """Return an ask of Optuna's TPE, with eight trials pending."""
    drawn = np.random.default_rng(2)
    choices = [{axis.name: axis.at(drawn.random()) for axis in AXES} for _ in range(results + 8)]
    told = [proposing.Tried(choice, (float(drawn.random()),)) for choice in choices[:results]]
    told += [proposing.Tried(choice) for choice in choices[results:]]
    return lambda seed: proposing.propose(AXES, "tpe", told, 1, seed)


def resumption(folder: Path) -> Callable[[int], object]:
    """Write a long search; return what a process that goes on with it does: read, verify, replay, look for stale ones."""
    one = planned(folder, AT_ONCE, DECISIONS + 1)
    known: dict[int, Recorded] = {}

    def outcome(entry: Decision) -> Recorded | None:
        return known.get(entry["n"])

    def decider() -> Decider:
        log = DecisionLog(Folder(folder / "root"), one.id)
        return Decider(one.rules, log, lambda: one.content, outcome, lambda _: None)

    first = decider()
    first.lead()
    while len(first.entries) < DECISIONS:
        first.advance()
        known |= {entry["n"]: Recorded("complete", {"quiz": 0.5}, {"quiz": 0.1}) for entry in first.entries}
    first.release()
    assert len(first.entries) == DECISIONS

    def resume(seed: int) -> None:
        again = decider()
        assert again.lead() and not again.stale() and len(again.entries) == DECISIONS
        again.release()

    return resume


def took_s(task: Callable[[int], object], repeats: int) -> Iterator[float]:
    """Yield the seconds of the processor that each call takes."""
    for seed in range(repeats):
        began = time.process_time()
        task(seed)
        yield time.process_time() - began


def main() -> None:
    """Time each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    of_all = f"{CANDIDATES:,} candidates, {RESULTS} results"
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            f"own, mixtures of {DATASETS}, {of_all}": own(mixtures(), Target(("score",))),
            f"own, model x rate x rank, {of_all}": own(settings(), Target(("score",))),
            f"own, the same for each of {MODELS} models": own(settings(), Target(("score",), "model")),
            **{f"TPE, {len(AXES)} axes, {results} results, 8 pending": tpe(results) for results in (40, 200, RESULTS)},
            f"{DECISIONS:,} decisions resumed": resumption(Path(folder)),
        }
        for name, task in tasks.items():
            first, *others = took_s(task, repeats + 1)
            print(f"{name}: {1000 * statistics.median(others):.0f} ms, the first {1000 * first:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
