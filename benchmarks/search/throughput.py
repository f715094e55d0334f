"""What a fixed order of decisions costs in time: trainings an hour, beside those of lanes that never wait.

    python benchmarks/search/throughput.py FILE.csv:COLUMN[:GROUP] ... [--windows 1 2] [--lanes 8] [--trials 200] [--seeds 3]

In strict order decision n rests on the outcomes of decisions 0 to n - w alone, so a lane may have to wait for a slow one. Here
the code that decides in a run (``massive_sft.search.decider``) decides for lanes that are simulated: trainings take as long as
runs of a published table did, drawn from a column of it by lot; with a group, such as the model, all of one by lot. Free lanes
take the same trainings, each as soon as one is free.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from massive_sft.ledger.storage import Folder
from massive_sft.search.decider import Decider
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import Planned, plan_searches
from massive_sft.search.rules import Decision
from massive_sft.sweep.load import load_sweep

FIRST_SEED = 2000
LEAST = 6  # runs of a group that say how much durations differ


def planned(folder: Path, at_once: int, trials: int) -> Planned:
    """Return a search over a learning rate whose decisions look so far ahead."""
    pinned = {"hub": "someone/thing", "revision": "0" * 40}
    search = {
        "name": "s", "model": "small", "mixture": "first", "setting": "lora", "objective": {"maximize": "quiz"},
        "space": {"lr": {"log": [1e-6, 1e-3]}}, "sampler": "random", "trials": trials, "at_once": at_once, "start": {"qmc": 1},
    }  # fmt: skip
    sweep = {
        "schema": 1, "name": "made", "models": {"small": pinned}, "blocks": [], "search": [search],
        "datasets": {"first": pinned | {"format": "alpaca"}},
        "mixtures": {"first": {"each": ["first"], "samples": 1000}},
        "settings": {"lora": {"method": "lora", "lr": 1e-4, "batch": 32}},
        "evaluation": {"tasks": [{"name": "quiz", "shots": 0}]},
        "storage": {"root": str(folder / "ledger")},
    }  # fmt: skip
    file = folder / "sweep.yaml"
    file.write_text(json.dumps(sweep))  # JSON is YAML
    return plan_searches(load_sweep(file))[0]


def strict(folder: Path, durations: np.ndarray, at_once: int, lanes: int) -> float:
    """Return how long all trainings take in strict order."""
    one = planned(folder, at_once, len(durations))
    done: set[int] = set()

    def outcome(entry: Decision) -> Outcome | None:
        return Outcome("complete", {"quiz": float(entry["n"] % 7)}, {}) if entry["n"] in done else None

    decider = Decider(one.rules, DecisionLog(Folder(folder / "root"), one.id), lambda: one.content, outcome, outcome)
    decider.lead()
    running: list[tuple[float, int]] = []
    now, started = 0.0, 0
    while len(done) < len(durations):
        decider.advance()
        while started < len(decider.entries) and len(running) < lanes:
            heapq.heappush(running, (now + float(durations[started]), started))
            started += 1
        now, ended = heapq.heappop(running)
        done.add(ended)
    decider.release()
    return now


def free(durations: np.ndarray, lanes: int) -> float:
    """Return how long the same trainings take where no lane ever waits."""
    ends = [0.0] * lanes
    for duration in durations:
        heapq.heappush(ends, heapq.heappop(ends) + float(duration))
    return max(ends)


def main() -> None:
    """Print the throughput in strict order as a share of the free one, by window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="+", metavar="FILE:COLUMN[:GROUP]", help="durations, in any unit")
    parser.add_argument("--windows", nargs="+", type=int, default=[1, 2], help="times the lanes")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for named in args.columns:
        path, column, *group = named.split(":")
        frame = pd.read_csv(path).dropna(subset=[column, *group])
        kinds = [part[column].to_numpy(float) for _, part in (frame.groupby(group) if group else [("", frame)])]
        kinds = [known for known in kinds if len(known) >= LEAST]
        spread = np.median([np.percentile(known, 95) / np.percentile(known, 5) for known in kinds])
        for times in args.windows:
            shares = []
            for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                generator = np.random.default_rng(seed)
                durations = generator.choice(kinds[generator.integers(len(kinds))], args.trials)
                with tempfile.TemporaryDirectory() as folder:
                    taken = strict(Path(folder), durations, times * args.lanes, args.lanes)
                shares.append(free(durations, args.lanes) / taken)
            print(
                f"{Path(path).stem}, {' of one '.join([column, *group])} (95th over 5th percentile: {spread:.1f}): w = {times} x {args.lanes} lanes: "
                f"{np.mean(shares):.3f} of the free throughput, least {min(shares):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
