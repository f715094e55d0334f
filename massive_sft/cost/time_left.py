"""The time that a run still takes: the estimate of its parts, corrected by what the parts done so far took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from massive_sft.cost.duration import Quantity
from massive_sft.cost.estimate import Estimator, runs_to_train
from massive_sft.cost.extension import resumed_shares
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.planning.trained import needs_retraining

# What an estimate counts for beside what was seen: until about as long has passed, it decides. The second where it
# rests on data sheets and rough counts, which may be wrong several times over.
PRIOR_S, GUESS_PRIOR_S = 30.0, 5.0
GUESS_S = 60.0  # of a part of which nothing is known, where nothing is known of the others either
# In which what is shown comes nearer to what is reckoned, by two thirds of the way, and of what is left at most.
SMOOTH_S, SMOOTH_SHARE = 15.0, 1 / 8

Parts = Mapping[str, Quantity | None]


@dataclass
class _Kind:
    """Trainings, or cells: what is left of them is corrected by how long what was done of them took.

    Attributes:
        estimates: seconds by id.
        shares: how much of each is done, from 0 to 1, by this run or before.
        todo: estimated seconds of what is left.
        worked: estimated seconds of what was done in this run.
        took: seconds that it took.
        sure: whether all estimates rest on measurements of this kind of work.
    """

    estimates: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    todo: float = 0.0
    worked: float = 0.0
    took: float = 0.0
    sure: bool = True

    @property
    def is_guess(self) -> bool:
        """Whether what is left of it rests on estimates alone that no measurement stands behind."""
        return not self.sure and self.took == 0.0 and self.todo > 0.0

    def expect(self, parts: Parts, otherwise: float) -> None:
        """Add parts that are new. One of which nothing is known counts as the mean of the others, or ``otherwise``."""
        mean = _mean(parts.values())
        for part, estimate in parts.items():
            if part not in self.estimates:
                own = (otherwise if mean is None else mean) if estimate is None else estimate.value
                self.estimates[part] = own
                self.todo += own
                self.sure &= estimate is not None and estimate.sure and estimate.complete

    def note(self, part: str, share: float) -> float:
        """Take note of how much of a part is done; return the estimated seconds of what is new of it."""
        before = self.shares.get(part, 0.0)
        share = max(before, min(1.0, share))
        done = (share - before) * self.estimates.get(part, 0.0)
        self.shares[part] = share
        self.todo -= done
        return done

    def left(self) -> float:
        """Return the seconds that its parts still take, one after another."""
        prior = _prior(self.sure)
        return max(0.0, round(self.todo, 6)) * (prior + self.took) / (prior + self.worked)


def _scoring(estimator: Estimator, cell: CellPlan, run: RunPlan | None) -> Quantity | None:
    """Return the seconds of what a cell lacks, as far as they can be told; None where nothing of them can."""
    seconds = estimator.unmet(cell, run)
    return seconds if seconds.complete or seconds.value else None


def _prior(sure: bool) -> float:
    return PRIOR_S if sure else GUESS_PRIOR_S


def _mean(estimates: Iterable[Quantity | None]) -> float | None:
    known = [estimate.value for estimate in estimates if estimate is not None]
    return sum(known) / len(known) if known else None


class TimeLeft:
    """The parts of a run, trainings and cells, with the seconds that each is estimated to take.

    A part that cannot be estimated counts as the mean of those of its kind that can. Trainings and cells are corrected
    apart, each by what theirs took. Parts are done side by side, and between them a run waits, so their seconds pass at
    another rate than those of the clock: that is the time since the first was begun over what all in hand took since
    then, as if it had been 1 for ``PRIOR_S`` before, or ``GUESS_PRIOR_S``.

    Args:
        trainings, cells: estimated seconds by id; None for unknown.
    """

    def __init__(self, trainings: Parts, cells: Parts):
        self._trainings, self._cells = _Kind(), _Kind()
        self._items = dict[str, int]()  # what is asked of a cell
        self._answered: dict[str, dict[str, float]] = {}  # the share of each benchmark, by cell
        self._in_hand: dict[str, float] = {}  # when something was last heard of a cell
        self._passed = 0.0  # seconds of cells in hand that say nothing of how long others take
        self._first: float | None = None
        self._shown: tuple[float, float, tuple[str, ...]] | None = None
        self._expect(trainings, cells)

    @classmethod
    def of(cls, plan: Plan, retrain: bool = False) -> TimeLeft:
        """Return that of what a plan leaves to do; nothing can be done of cells whose snapshots were removed.

        Args:
            retrain: whether trainings whose snapshots were removed are done again.
        """
        left = cls({}, {})
        left.add(plan, retrain)
        return left

    def add(self, plan: Plan, retrain: bool = False) -> None:
        """Take in what a plan leaves to do, and is not known yet."""
        estimator = Estimator(plan)
        to_train = runs_to_train(plan, retrain)
        trained = {run.trajectory.id: estimator.training(run) for run in to_train}
        todo: list[tuple[CellPlan, RunPlan | None]] = [(cell, None) for cell in plan.base if not cell.is_done]
        for run in plan.todo:
            for cell in run.cells:
                if not cell.is_done and (retrain or not needs_retraining(plan.storage, run.trajectory, [cell])):
                    todo.append((cell, run))
        self._items |= {cell.cell.id: len(cell.unmet) for cell, _ in todo}
        self._expect(trained, {cell.cell.id: _scoring(estimator, cell, run) for cell, run in todo})
        for trajectory, share in resumed_shares(plan.storage, to_train).items():
            self._trainings.note(trajectory, share)

    def _expect(self, trainings: Parts, cells: Parts) -> None:
        mean = _mean((*trainings.values(), *cells.values()))
        for kind, parts in ((self._trainings, trainings), (self._cells, cells)):
            kind.expect(parts, GUESS_S if mean is None else mean)

    def stepped(self, trajectory: str, step: int, of: int, seconds: float, now: float) -> None:
        """Take note of a step of a training that took ``seconds``, ``step`` of ``of``."""
        self._begin(now - seconds)
        kind = self._trainings
        if trajectory in kind.estimates:
            kind.note(trajectory, step / of)  # more than this step, where it goes on from a checkpoint
            kind.worked += kind.estimates[trajectory] / of
            kind.took += seconds

    def trained(self, trajectory: str) -> None:
        """Take note that nothing is left of a training."""
        self._trainings.note(trajectory, 1.0)

    def scoring(self, cell: str, now: float) -> None:
        """Take note that somebody begins with a cell."""
        self._begin(now)
        self._in_hand[cell] = now

    def answered(self, cell: str, benchmark: str, share: float, now: float, found: float | None = 0.0) -> None:
        """Take note of how much of a cell's benchmark is answered, from 0 to 1.

        Args:
            found: how much of it was answered before the run began; None for some of it, nobody knows how much. It
                teaches no speed.
        """
        shares = self._answered.setdefault(cell, {})
        if found is None and benchmark not in shares:
            found = share
            self._pass(cell, now)
        if found:
            self._cells.note(cell, self._share(cell, benchmark, found))
        self._advance(cell, self._share(cell, benchmark, share), now)

    def _share(self, cell: str, benchmark: str, share: float) -> float:
        """Return how much of a cell is done once so much of a benchmark is."""
        shares = self._answered[cell]
        shares[benchmark] = max(share, shares.get(benchmark, 0.0))
        return sum(shares.values()) / max(self._items.get(cell, 1), len(shares))

    def _pass(self, cell: str, now: float) -> None:
        """Let time pass over a cell that says nothing of how long others take."""
        if cell in self._in_hand:
            self._passed += now - self._in_hand[cell]
            self._in_hand[cell] = now

    def recorded(self, cell: str, now: float, went_well: bool = True) -> None:
        """Take note that a cell has its record; one that did not go well tells nothing of how long others take."""
        if went_well:
            self._advance(cell, 1.0, now)
        self._cells.note(cell, 1.0)
        self._in_hand.pop(cell, None)

    def _advance(self, cell: str, share: float, now: float) -> None:
        if cell in self._in_hand:
            self._cells.worked += self._cells.note(cell, share)
            self._cells.took += now - self._in_hand[cell]
            self._in_hand[cell] = now

    def _begin(self, now: float) -> None:
        self._first = now if self._first is None else min(self._first, now)

    def seconds(self, now: float) -> float:
        """Return the seconds left, as of ``now`` by a clock that never goes back; 0 when every part is done."""
        elapsed = 0.0 if self._first is None else now - self._first
        seen = self._trainings.took + self._cells.took + self._passed
        seen += sum(now - since for since in self._in_hand.values())
        prior = _prior(self._trainings.sure and self._cells.sure)
        return (self._trainings.left() + self._cells.left()) * (prior + elapsed) / (prior + seen)

    @property
    def guessed(self) -> tuple[str, ...]:
        """What ``seconds`` counts that was measured neither before nor in this run so far."""
        kinds = (("trainings", self._trainings), ("scoring", self._cells))
        return tuple(name for name, kind in kinds if kind.is_guess)

    def shown(self, now: float) -> float:
        """Return the seconds left as people are told: they pass as the clock does, and come nearer to what is so.

        What was a guess is given up at once when the first of its kind is seen.
        """
        found, guessed = self.seconds(now), self.guessed
        if self._shown is not None and found and self._shown[2] == guessed:
            last, when, _ = self._shown
            passed = last - (now - when)
            found += (passed - found) * math.exp(-(now - when) / min(SMOOTH_S, SMOOTH_SHARE * found))
        self._shown = max(0.0, found), now, guessed
        return self._shown[0]
