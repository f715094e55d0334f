"""The watchdog of a run: it says when nothing moves, and ends a run in which nobody works."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from massive_sft.core.errors import ExitCode, MassiveSFTError

ROUNDING = 0.01  # of CPUs and GPUs

State = Mapping[str, Any]  # of a pool


class Stuck(MassiveSFTError):
    """Nothing moves: the text says who waits for what, and who holds it."""

    exit_code = ExitCode.TRY_AGAIN


@dataclass
class Limits:
    """How long a run may be silent, in seconds.

    Attributes:
        silence_s: without progress after which the watchdog speaks where nobody works.
        working_s: the same where a lane or a scorer has work in hand: one step or one shard may take minutes.
        start_s: that lanes, scorers and trials may take to start: processes, imports, images, nodes that are to come.
        answer_s: that a pool may take to say how it is.
        patience: times it speaks before it ends the run.
    """

    silence_s: float = 60.0
    working_s: float = 1800.0
    start_s: float = 900.0
    answer_s: float = 60.0
    patience: int = 3


class Watchdog:
    """Looks at the states of a run's pools, again and again, and at a clock.

    Work in hand may be silent for as long as it likes: that is said, and the run goes on. What only starts has
    ``start_s``; after that, and where nothing starts, ``patience`` times ``silence_s`` without progress end the run.
    A cell that a reader has taken waits until a scorer begins it.

    Args:
        say: told who waits for what when nothing moves.
        now: returns seconds that never go back.
        limits: how long is too long.
    """

    def __init__(self, say: Callable[[str], None], now: Callable[[], float], limits: Limits):
        self._say = say
        self._now = now
        self._limits = limits
        self._moved = now()
        self._seen = -1
        self._spoken = 0

    def look(self, progress: int, is_working: bool, is_starting: bool, describe: Callable[[], str]) -> None:
        """Take note of how far a run is.

        Args:
            progress: a number that moves with everything that happens.
            is_working: whether somebody has work in hand.
            is_starting: whether somebody starts who will work.
            describe: returns who waits for what, and who holds it; called when nothing moves.

        Raises:
            Stuck: nothing moves, and nobody works.
        """
        if progress != self._seen:
            self._moved, self._seen, self._spoken = self._now(), progress, 0
            return
        silent = self._now() - self._moved
        silence = self._limits.working_s if is_working else self._limits.silence_s
        if silent <= silence * (self._spoken + 1):
            return
        self._spoken += 1
        text = describe()
        self._say(f"nothing moved for {silent:.0f} s: {text}")
        allowed = max(self._limits.start_s if is_starting else 0.0, silence * self._limits.patience)
        if not is_working and silent > allowed:
            raise Stuck(f"nothing moves and nobody works: {text}")

    def no_answer(self) -> None:
        """Take note that a pool did not say how it is. Raises Stuck when none did for too long."""
        silent = self._now() - self._moved
        text = f"the run's own queues have not answered for {silent:.0f} s; is the node of this process overloaded?"
        self._say(text)
        if silent > self._limits.answer_s * self._limits.patience:
            raise Stuck(text)


def is_working(pool: State, queue: State) -> bool:
    """Return whether a lane trains or a scorer has begun a cell."""
    return bool(pool["held"] or queue["begun"])


def is_starting(pool: State, queue: State, lanes: Collection[str], scores: bool) -> bool:
    """Return whether somebody starts who is waited for.

    Args:
        lanes: names of the lanes that are up or start.
        scores: whether scorers are up or start.
    """
    starting_lanes = set(lanes) - pool["idle"].keys() - pool["held"].keys()
    late_trials = any(count > 0 for count in pool["expected"].values()) and not pool["begun"]
    late_scorers = scores and bool(queue["waiting"] or queue["out"])
    return bool(starting_lanes or late_trials or late_scorers)


def who_waits(
    pool: State, queue: State, lanes: Iterable[str], free: Mapping[str, float], taken: Mapping[str, float]
) -> str:
    """Return in a sentence who waits for what, who holds it, how much is free, and how much other jobs have taken."""
    waits = [f"{count} trainings wait for a lane of {shape}" for shape, count in pool["queued"].items() if count]
    late = [(shape, count) for shape, count in pool["expected"].items() if count > 0]
    waits += [f"{count} trainings for {shape} are still to begin" for shape, count in late]
    judged = queue["judging"] - queue["begun"]
    read = [cell for cell in queue["out"] if cell not in queue["begun"] | judged]
    cells = queue["waiting"] + len(read)
    waits += [f"{cells} cells wait for a scorer"] if cells else []
    waits += [f"{len(judged)} cells wait for verdicts"] if judged else []
    holds = [f"lane {lane} trains {order}" for lane, order in pool["held"].items()]
    holds += [f"lane {lane} {_how(lane, pool)}" for lane in lanes if lane not in pool["held"]]
    holds += [f"scorers have {', '.join(sorted(queue['begun']))}"] if queue["begun"] else []
    left = [f"free: {', '.join(f'{count:g} {name}' for name, count in free.items())}"]
    others = ", ".join(f"{count:.3g} {name}" for name, count in taken.items() if count > ROUNDING)
    left += [f"other jobs of the cluster have {others}"] if others else []
    return "; ".join([*(waits or ["nobody waits in a queue"]), *(holds or ["no lane and no scorer works"]), *left])


def _how(lane: str, pool: State) -> str:
    if lane in pool["idle"]:
        return "is idle"
    return "starts" if lane in pool["up"] else "waits for its place"
