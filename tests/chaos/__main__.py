"""A campaign: faults strike one sweep after another, each sweep is rerun until it ends, then everything is compared."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from commands import forked_workers
from processes import Process, adopt_orphans, descendants

from chaos import watch
from chaos.faults import Fault, draw, ends_run, hits_scoring, hits_training, strike
from chaos.scenes import SCENES, Scene
from chaos.stage import Stage, run_inline
from chaos.sweep import settle
from chaos.verify import problems

POLL = 0.001  # seconds between looks for a phase, some of which last a few milliseconds
LOOK = 0.2  # seconds between looks at how far the sweep is
PAUSE = 1.0  # seconds between two faults
LEAVE = 10.0  # seconds that Ray's workers may take to notice that their node is gone
RERUNS = 5  # of one sweep that ends incomplete without a fault
SCORERS = 2  # that one cell may lose in a run; of a third it would be the fault
TRY_AGAIN = 75  # the exit code of a run that lost what it meets at


class Failed(Exception):
    """The campaign found something lost, doubled, different or stuck."""


@dataclass
class Campaign:
    """What was struck so far; kept on the disk, so that a campaign that was interrupted goes on.

    Attributes:
        folder: everything lies here.
        place: name of the scene.
        seed: chooses the faults and their order.
        pending: faults still to strike.
        struck: what was struck: fault, whom, in which round, after how many seconds of the campaign.
        stored: what lies in an object store: ``snapshots``, the ``root``, or nothing.
        rounds: sweeps that were finished and found right.
        seconds: spent before this process took it up.
        silence_s: without any change on the disk after which the sweep counts as hanging.
        before: processes that were there before a sweep: what Ray's workers are forked from.
    """

    folder: Path
    place: str
    seed: int
    pending: list[Fault]
    stored: str = ""
    struck: list[dict[str, Any]] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0
    silence_s: float = 300.0
    before: frozenset[int] = frozenset()

    @classmethod
    def load(cls, folder: Path, place: str, seed: int, rounds: int, stored: str) -> Campaign:
        """Take up the campaign in ``folder``, or begin it."""
        path = folder / "campaign.json"
        if not path.exists():
            aims = SCENES[place].aims
            if stored == "root":  # an object is written whole, without a temporary one that shows when
                aims = {kind: tuple(phase for phase in phases if phase != "recording") for kind, phases in aims.items()}
            return cls(folder, place, seed, draw(random.Random(seed), aims, rounds), stored)
        known = json.loads(path.read_text())
        if known["seed"] != seed:
            raise SystemExit(f"{folder} holds the campaign of seed {known['seed']}; choose another --folder")
        return cls(folder, **known | {"pending": [Fault(**fault) for fault in known["pending"]]})

    @property
    def scene(self) -> Scene:
        return SCENES[self.place]

    def save(self) -> None:
        """Write it down."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("folder", "silence_s", "before")} | {
            "seconds": self.spent
        }
        temporary = self.folder / ".campaign.json"
        temporary.write_text(json.dumps(kept, indent=1))
        temporary.replace(self.folder / "campaign.json")

    @property
    def spent(self) -> float:
        """Seconds of this campaign until now."""
        return self.seconds + time.monotonic() - BEGAN

    def say(self, text: str) -> None:
        """Print a line and log it."""
        line = f"{self.spent:7.1f} s  {text}"
        print(line, flush=True)
        with (self.folder / "campaign.log").open("a") as log:
            log.write(line + "\n")

    def run(self) -> None:
        """Strike with everything that is pending, in as many sweeps as that takes. Raises Failed."""
        beside = self._undisturbed()
        while self.pending or not self.rounds:
            with Stage(self.folder, self.scene, f"round-{self.rounds + 1}", self.stored) as stage:
                _Round(self, stage).run()
                if beside is not None:
                    self._require_complete(beside.wait())
                    beside = None
                tracker = f"http://127.0.0.1:{stage.port}"
                wrong = list(problems(stage.view, self.folder / "undisturbed", tracker, self.scene.length.steps))
            wrong += [f"process {process.pid} is left: {process.title[:100]}" for process in self._left()]
            if wrong:
                raise Failed("\n".join(wrong))
            self.rounds += 1
            self.save()
            self.say(f"round {self.rounds}: every cell once, every bit as undisturbed, nobody left")

    def _undisturbed(self) -> subprocess.Popen[bytes] | None:
        """Run the sweep that is compared with, unless that was done before; return it where it goes on beside."""
        root = self.folder / "undisturbed"
        if (root / "done").exists():
            return None
        shutil.rmtree(root, ignore_errors=True)
        if self.scene.is_inline:
            return run_inline(self.folder, self.scene)
        with Stage(self.folder, self.scene, root.name) as stage:
            stage.start_driver()
            while stage.driver_code is None:
                time.sleep(LOOK)
            self._require_complete(stage.driver_code)
        return None

    def _require_complete(self, code: int) -> None:
        if code != 0:
            raise Failed(f"the undisturbed sweep ended with {code}, see {self.folder}/undisturbed.*log")
        (self.folder / "undisturbed" / "done").touch()
        self.say("the undisturbed sweep is complete")

    def _left(self) -> list[Process]:
        """Return what is left of a round."""
        deadline = time.monotonic() + LEAVE
        while True:
            left = [process for process in descendants() if process.pid not in self.before]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def coverage(self) -> str:
        """Return how often each fault struck in each phase."""
        counts = Counter((one["kind"], one["phase"]) for one in self.struck)
        lines = [f"{sum(counts.values())} faults struck, seed {self.seed}:"]
        for kind, phases in self.scene.aims.items():
            lines.append(f"  {kind:24}" + "  ".join(f"{phase}: {counts[kind, phase]}" for phase in phases))
        return "\n".join(lines)


class _Round:
    """One sweep, from its first start to its last rerun."""

    def __init__(self, campaign: Campaign, stage: Stage):
        self._campaign = campaign
        self._stage = stage
        self._state: dict[str, Any] = {}
        self._changed = self._looked = self._struck = time.monotonic()
        # Trajectories that were struck and have not got further since, with their checkpoint then.
        self._hit: dict[str, str | None] = {}
        self._scorers_lost = Counter[str]()  # by cell, in this run
        self._is_ending = False  # whether what was struck ends the run
        self._idle_reruns = 0

    def run(self) -> None:
        """Return once the driver has ended with everything complete. Raises Failed."""
        stage = self._stage
        stage.start_driver()
        while True:
            stage.catch_up()
            if time.monotonic() - self._struck > PAUSE and not stage.is_mending and not self._is_ending:
                self._strike()
            # A run refuses to begin without its tracker, so its user waits for that.
            if stage.driver_code is not None and not stage.is_mending and stage.tracker_answers():
                if stage.driver_code == 0:
                    self._mirror()
                    return
                self._rerun(stage.driver_code)
            self._look_for_silence()
            time.sleep(POLL)

    def _strike(self) -> None:
        for fault in self._campaign.pending:
            whom = strike(fault, self._stage, self._spared(fault))
            if whom is None:
                continue
            campaign = self._campaign
            campaign.say(f"{fault}: {whom}")
            campaign.pending.remove(fault)
            at = {"whom": whom, "round": campaign.rounds + 1, "at": round(campaign.spent, 1)}
            campaign.struck.append({**asdict(fault), **at})
            campaign.save()
            self._struck = self._changed = time.monotonic()
            self._is_ending = ends_run(fault)
            where = whom.split()[0]
            if hits_training(fault):
                self._hit[where] = watch.state_of(self._stage.view)["checkpoints"].get(where)
            if hits_scoring(fault):
                self._scorers_lost[where] += 1
            return

    def _spared(self, fault: Fault) -> Collection[str]:
        """Return what a fault must not hit now, for too many in a row would count as its own fault."""
        if hits_training(fault):
            return self._hit
        return [cell for cell, lost in self._scorers_lost.items() if hits_scoring(fault) and lost >= SCORERS]

    def _rerun(self, code: int) -> None:
        killed = code == -signal.SIGKILL
        if self._is_ending and code != TRY_AGAIN:
            raise Failed(f"the run ended with {code} instead of {TRY_AGAIN}")
        self._idle_reruns += not (killed or self._is_ending)
        if self._idle_reruns > RERUNS:
            raise Failed(f"the sweep is still not complete after {RERUNS} undisturbed reruns (exit code {code})")
        self._campaign.say("the same command again" + ("" if killed else f", for it ended with {code}"))
        self._stage.start_driver()
        self._changed, self._is_ending = time.monotonic(), False
        self._scorers_lost.clear()

    def _mirror(self) -> None:
        """Do what the run's last words ask for when the tracker came back only after it ended."""
        self._stage.view.refresh()
        if any(watch.mirroring(self._stage.view)):
            self._campaign.say("massive-sft mirror, for the tracker lags behind")
            if self._stage.mirror() != 0:
                raise Failed("massive-sft mirror could not catch up")

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked, state = now, watch.state_of(self._stage.view)
        if state != self._state:
            self._state, self._changed = state, now
        for where, checkpoint in list(self._hit.items()):
            if where in state["trained"] or state["checkpoints"].get(where) != checkpoint:
                self._campaign.say(f"  {where} got further, {now - self._struck:.1f} s after the last fault")
                del self._hit[where]
        if now - self._changed > self._campaign.silence_s:
            around = f"the driver's exit code is {self._stage.driver_code}, the tracker "
            around += "answers" if self._stage.tracker_answers() else "does not answer"
            raise Failed(f"nothing changed for {self._campaign.silence_s:g} s, {around}: {json.dumps(state)}")


def main() -> int:
    """Run or go on with a campaign; return 0 when everything struck and nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", choices=SCENES, default="one-lane", help="which cluster, and which faults")
    parser.add_argument("--times", type=int, default=0, help="each fault in each phase so often; 0: one of each kind")
    parser.add_argument("--s3", choices=("snapshots", "root"), default="", help="what lies in an object store")
    parser.add_argument("--silence", type=float, default=300.0, help="seconds that mean a hang; more on a busy machine")
    parser.add_argument("--folder", type=Path, help="for a campaign that can be interrupted; else a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="massive-sft-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    settle(folder.absolute())
    # Ray's own files, at a path short enough for a socket's; others on this machine must not find this cluster there.
    os.environ["RAY_TMPDIR"] = ray_folder = tempfile.mkdtemp(prefix="chaos-")
    asked = arguments.scene, arguments.seed, arguments.times, arguments.s3
    campaign = Campaign.load(folder.absolute(), *asked)
    campaign.silence_s = arguments.silence
    try:
        with forked_workers():
            campaign.before = frozenset(process.pid for process in descendants())
            campaign.run()
    except Failed as error:
        campaign.say(f"FAILED: {error}")
        print(f"everything is in {folder}", file=sys.stderr)
        return 1
    finally:
        campaign.save()
        print(campaign.coverage(), flush=True)
        for process in descendants():
            os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(ray_folder, ignore_errors=True)
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
