"""Kills processes that decide for searches, train and score, at random, and asks whether the decisions are equal.

``PYTHONPATH=tests python -m chaos.decisions --kills 50`` from the repository's root. Lanes are processes of ``run
--inline`` on one root: one of them decides, all train what was decided, and whoever is killed is started again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from commands import Fault, kill, start
from small_sweep import small_sweep

from chaos.sweep import settle
from chaos.verify import different
from chaos.view import View
from chaos.watch import decisions_of
from massive_sft.core.checksummed_json import unseal
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger

LANES = (1, 2, 4, 8)
LONGEST = 0.25  # of the time that undisturbed searches take: what a process has before it is killed, at most
FILES = 12  # writes to the folder of searches, before the first of which to the last a process may be killed
AT_DECISION = 0.5  # of the kills are at such a write, the others at any instant
POLL = 0.005  # seconds between looks at the processes
TRY_LATER = (0, -signal.SIGKILL)

PARKED = "400kB"  # what three trainings leave, of six: so some are dropped
SPACE = {"lr": {"log": [1e-3, 0.3]}, "lora.rank": [2, 4, 8]}
SEARCHES: list[dict[str, Any]] = [
    {"name": "rungs", "setting": "lora", "space": SPACE, "sampler": "tpe", "trials": 7, "start": {"qmc": 3}}
    | {"horizon": 2, "rungs": {"at": [1, 2], "keep": 0.5, "parked": {"at_most": PARKED}}},
    {"name": "best", "setting": "lora", "space": SPACE, "sampler": "gp", "trials": 6, "start": {"qmc": 3}}
    | {"confirm": {"top": 1, "seeds": [1, 2]}},
    {"name": "grid", "over": ["A"], "stop": {"regret": "5%", "probability": 0.9}},
]


def write_sweep(folder: Path) -> Path:
    """Write three searches over the offline world, each of whose trainings takes two steps an epoch."""
    own = {"model": "llama", "mixture": "one"}
    shared = {"objective": {"minimize": "perplexity"}, "at_once": 4, "retries": 100}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 2}
    return small_sweep(
        folder,
        mixtures={"one": {"each": "facts", "samples": 8}},
        settings={
            "defaults": {"max_length": 64, "precision": "fp32", "batch": 4},
            "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
        },
        blocks=[block | {"snapshots": [1, 2], "override": {"lr": [1e-2, 5e-2, 0.2]}}],
        search=[shared | ({} if "over" in one else own) | one for one in SEARCHES],
        evaluation={"base": False, "tasks": []},
        measures=["perplexity"],
    )


def kinds(found: dict[str, bytes]) -> str:
    """Return how many decisions there are of each kind."""
    counts = Counter(json.loads(unseal(data, name))["kind"] for name, data in found.items() if "/decisions/" in name)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


@dataclass
class Round:
    """One root, from its first start until all lanes have ended by themselves.

    Attributes:
        lanes: processes at a time.
        most: kills, after which all lanes are left alone.
        longest_s: what a process has before it is killed, at most.
        kills: those that struck: at a write of a decision, or any time.
    """

    folder: Path
    sweep: Path
    lanes: int
    most: int
    random: random.Random
    longest_s: float = 0.0
    kills: dict[str, int] = field(default_factory=lambda: {"at a write": 0, "any time": 0})
    _ends: dict[int, float] = field(default_factory=dict)  # when a lane's process is killed, by lane
    _started: int = 0

    def run(self) -> None:
        """Return once every lane has ended with exit code 0. Raises AssertionError."""
        running = {lane: self._start(lane) for lane in range(self.lanes)}
        try:
            while running:
                for lane, process in list(running.items()):
                    if process.exitcode is None:
                        self._strike(lane, process)
                        continue
                    process.join()
                    assert process.exitcode in TRY_LATER, (
                        f"lane {lane} ended with {process.exitcode}, see {self.folder}"
                    )
                    if process.exitcode == 0:
                        del running[lane]
                    else:
                        self._count("any time" if lane in self._ends else "at a write")
                        running[lane] = self._start(lane)
                time.sleep(POLL)
        finally:
            for process in running.values():
                process.kill()
                process.join()

    def _start(self, lane: int) -> BaseProcess:
        """Start a lane's process, which is to be killed after some time, at some write, or not at all."""
        self._ends.pop(lane, None)
        fault = None
        if sum(self.kills.values()) < self.most:
            if self.random.random() < AT_DECISION:
                fault = Fault(r"/searches/", kill, self.random.randrange(FILES), removing=True)
            else:
                self._ends[lane] = time.monotonic() + self.random.uniform(0, self.longest_s)
        self._started += 1
        return start("run", self.sweep, "--inline", out=self.folder / f"{self._started:03d}.log", fault=fault)

    def _strike(self, lane: int, process: BaseProcess) -> None:
        if time.monotonic() >= self._ends.get(lane, float("inf")):
            process.kill()

    def _count(self, how: str) -> None:
        self.kills[how] += 1


def problems(root: Path, expected: dict[str, bytes]) -> Iterator[str]:
    """Yield what is wrong with a root whose searches are over."""
    yield from different(decisions_of(View(root)), expected)
    for record in Ledger.open(root, create=False).records():
        if record.status is not Status.COMPLETE:
            yield f"{record.cell} is {record.status}: {record.error}"


def main() -> int:
    """Kill so many processes for each number of lanes; return 0 when all decided the same."""
    parser = argparse.ArgumentParser(prog="python -m chaos.decisions", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50, help="for each number of lanes")
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES, help="processes at a time")
    parser.add_argument("--each", type=int, default=15, help="kills in one round, after which it may end")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="massive-sft-decisions-"))
    settle(folder)
    began, drawn, total = time.monotonic(), random.Random(arguments.seed), 0

    longest_s = 0.0

    def one_round(name: str, lanes: int, most: int) -> tuple[Path, dict[str, int]]:
        place = folder / name
        place.mkdir()
        here = Round(place, write_sweep(place), lanes, most, drawn, longest_s)
        here.run()
        return place / "ledger", here.kills

    one_round("imports", 1, 0)  # the first process waits for what all are forked from
    since = time.monotonic()
    expected = decisions_of(View(one_round("undisturbed", 1, 0)[0]))
    longest_s = LONGEST * (time.monotonic() - since)
    print(f"{time.monotonic() - began:6.1f} s  undisturbed: {kinds(expected)}", flush=True)
    for lanes in arguments.lanes:
        killed, number = 0, 0
        while killed < arguments.kills:
            number += 1
            name = f"lanes-{lanes}-round-{number}"
            root, kills = one_round(name, lanes, min(arguments.each, arguments.kills - killed))
            killed += sum(kills.values())
            if wrong := list(problems(root, expected)):
                print("\n".join([f"FAILED: {name}, everything is in {folder}", *wrong]), file=sys.stderr)
                return 1
            print(f"{time.monotonic() - began:6.1f} s  {name}: killed {kills}, every decision equal", flush=True)
        total += killed
    print(f"{total} kills, {len(expected)} files of searches equal to the byte in every round")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
