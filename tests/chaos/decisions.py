"""Kills processes that decide for searches, train and score, at random, and asks whether the decisions are equal.

``PYTHONPATH=tests python -m chaos.decisions --kills 50`` from the repository's root. Lanes are processes of ``run
--inline`` on one root: one of them decides, all train what was decided, and whoever is killed is started again. With
``--ray`` they are the lanes of one ``run --ray``, on a head of so many pretended CPUs that half of them are the lanes';
who is killed is the driver, which decides, and what it had on the cluster ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
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

from commands import Fault, forked_workers, kill, start
from ray.cluster_utils import Cluster
from small_sweep import small_sweep

from chaos.stage import STORE
from chaos.sweep import settle
from chaos.verify import different
from chaos.view import View
from chaos.watch import decisions_of
from massive_sft.core.checksummed_json import unseal
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger

LANES = (1, 2, 4, 8)
LONGEST = 0.25  # of the time that undisturbed searches take: what a process has before it is killed, at most
LONGEST_ON_RAY = 0.75  # where much of that time goes by before the first decision
FILES = 12  # writes to the folder of searches, before the first of which to the last a process may be killed
AT_DECISION = 0.5  # of the kills are at such a write, the others at any instant
BESIDE = 4  # trainings for each lane on Ray, which starts as many lanes as there are minutes of work, by its estimate
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


def write_sweep(folder: Path, beside: int) -> Path:
    """Write three searches over the offline world, and so many trainings beside them, each of two steps an epoch."""
    own = {"model": "llama", "mixture": "one"}
    shared = {"objective": {"minimize": "perplexity"}, "at_once": 4, "retries": 100}
    block = {"model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 2}
    blocks = [block | {"name": "A", "snapshots": [1, 2], "override": {"lr": [1e-2, 5e-2, 0.2]}}]
    if beside:
        rates = [1e-4 * (1 + place) for place in range(beside)]
        blocks.append(block | {"name": "beside", "snapshots": [2], "override": {"lr": rates}})
    return small_sweep(
        folder,
        mixtures={"one": {"each": "facts", "samples": 8}},
        settings={
            "defaults": {"max_length": 64, "precision": "fp32", "batch": 4},
            "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
        },
        blocks=blocks,
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
        processes: at a time, each a ``run`` with the option ``how``.
        most: kills, after which all lanes are left alone.
        longest_s: what a process has before it is killed, at most.
        kills: those that struck: at a write of a decision, or any time.
    """

    folder: Path
    sweep: Path
    how: str
    processes: int
    most: int
    random: random.Random
    longest_s: float = 0.0
    kills: dict[str, int] = field(default_factory=lambda: {"at a write": 0, "any time": 0})
    _ends: dict[int, float] = field(default_factory=dict)  # when a lane's process is killed, by lane
    _started: int = 0

    def run(self) -> None:
        """Return once every lane has ended with exit code 0. Raises AssertionError."""
        running = {lane: self._start(lane) for lane in range(self.processes)}
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
        return start("run", self.sweep, self.how, out=self.folder / f"{self._started:03d}.log", fault=fault)

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


@contextlib.contextmanager
def ray_head(cpus: int) -> Iterator[None]:
    """Have what this process starts find a Ray of so many CPUs, of which the lanes of trainings get half."""
    with forked_workers():
        head = {"num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            yield
        finally:
            del os.environ["RAY_ADDRESS"]
            cluster.shutdown()


@dataclass
class Campaign:
    """Rounds on so many lanes, until enough was killed.

    Attributes:
        expected: what an undisturbed run decided, inline, by itself.
        each: kills in one round.
    """

    folder: Path
    random: random.Random
    each: int
    began: float
    expected: dict[str, bytes] = field(default_factory=dict)

    def undisturbed(self) -> float:
        """Run the searches inline, to be compared with; return the seconds that they took."""
        self._round("imports", "--inline", 1, 0)  # the first process waits for what all are forked from
        since = time.monotonic()
        self.expected = decisions_of(View(self._round("undisturbed", "--inline", 1, 0).folder / "ledger"))
        self._say(f"undisturbed: {kinds(self.expected)}")
        return time.monotonic() - since

    def inline(self, lanes: int, kills: int, longest_s: float) -> int:
        """Kill processes of ``run --inline``; return how many. Raises AssertionError where decisions differ."""
        return self._rounds(f"lanes-{lanes}", "--inline", lanes, kills, longest_s)

    def on_ray(self, lanes: int, kills: int) -> int:
        """Kill drivers of ``run --ray``; return how many. Raises AssertionError, also where there are fewer lanes."""
        with ray_head(2 * lanes):
            since = time.monotonic()
            whole = self._round(f"ray-{lanes}-undisturbed", "--ray", 1, 0, beside=BESIDE * lanes)
            self._compare(whole)
            started = re.findall(r"lane .* #\d+ starts", (whole.folder / "001.log").read_text())
            assert len(started) >= lanes, f"only {len(started)} lanes of {lanes} were started, see {whole.folder}"
            self._say(f"ray-{lanes}-undisturbed: {len(started)} lanes started, every decision equal")
            longest_s = LONGEST_ON_RAY * (time.monotonic() - since)
            return self._rounds(f"ray-{lanes}", "--ray", 1, kills, longest_s, BESIDE * lanes)

    def _rounds(self, name: str, how: str, processes: int, kills: int, longest_s: float, beside: int = 0) -> int:
        killed, number = 0, 0
        while killed < kills:
            number += 1
            most = min(self.each, kills - killed)
            one = self._round(f"{name}-round-{number}", how, processes, most, longest_s, beside)
            killed += sum(one.kills.values())
            self._compare(one)
            self._say(f"{one.folder.name}: killed {one.kills}, every decision equal")
        return killed

    def _round(self, name: str, how: str, processes: int, most: int, longest_s: float = 0.0, beside: int = 0) -> Round:
        place = self.folder / name
        place.mkdir()
        one = Round(place, write_sweep(place, beside), how, processes, most, self.random, longest_s)
        one.run()
        return one

    def _compare(self, one: Round) -> None:
        wrong = list(problems(one.folder / "ledger", self.expected))
        assert not wrong, "\n".join([f"everything is in {one.folder}", *wrong])

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)


def main() -> int:
    """Kill so many processes for each number of lanes; return 0 when all decided the same."""
    parser = argparse.ArgumentParser(prog="python -m chaos.decisions", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50, help="for each number of lanes")
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES, help="of one run on Ray, or processes at a time")
    parser.add_argument("--each", type=int, default=15, help="kills in one round, after which it may end")
    parser.add_argument("--ray", action="store_true", help="lanes of a run on Ray in place of processes")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="massive-sft-decisions-"))
    settle(folder)
    campaign = Campaign(folder, random.Random(arguments.seed), arguments.each, time.monotonic())
    try:
        took_s, total = campaign.undisturbed(), 0
        for lanes in arguments.lanes:
            if arguments.ray:
                total += campaign.on_ray(lanes, arguments.kills)
            else:
                total += campaign.inline(lanes, arguments.kills, LONGEST * took_s)
    except AssertionError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"{total} kills, {len(campaign.expected)} files of searches equal to the byte in every round")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
