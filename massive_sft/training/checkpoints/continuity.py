"""Whether the losses go on after a resume where they were before."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from massive_sft.core.errors import MassiveSFTError
from massive_sft.training.checkpoints.policy import ResumePoint
from massive_sft.training.divergence import LossCurve
from massive_sft.training.events import StepDone
from massive_sft.training.packing import Limit

# Difference of the first repeated loss, relative, and in nats for a loss near 0: what rounding to bf16 and other
# dropout masks explain.
TOLERANCE, NATS = 0.02, 0.01
STEPS = 5  # after a resume: lost weights show in each of them, a batch that is hard for sound ones in one


class LossJump(MassiveSFTError):
    """After a resume the loss does not go on where it was: the state that was loaded is not the one that was saved."""


@dataclass(frozen=True)
class Resumption:
    """One entry of a training's history: an attempt that did not begin at the start, or had to begin there again.

    Attributes:
        attempt: who resumed.
        source: the attempt that wrote the state; None when none could be used.
        step: where it went on; 0 for the start.
        repeated: steps that the other attempt had done as well, after its checkpoint.
        exact: whether their losses were equal bit by bit; None when there were none.
        notes: what was different, or why a state that is further, or any, could not be used.
    """

    attempt: int
    source: int | None
    step: int
    repeated: int = 0
    exact: bool | None = None
    notes: tuple[str, ...] = ()


class Continuity:
    """Compares the losses after a resume with those before.

    - A step that the checkpoint's writer had done as well: bit by bit where layout, libraries and micro-batches are
      the same and no GPU is used (its attention kernels add in any order). Else the first of them within 2 % or 0.01
      nats, later ones not at all, because rounding grows.
    - Without such a step: of the first five losses, one must not lie above the highest of the last 5 % of steps (at
      least 5) before by more than 0.5 nats and five standard deviations of the noise between batches. Until one does
      not, nothing may rest on the steps since: ``confirm``.
    """

    def __init__(self, start: ResumePoint, attempt: int):
        self._start = start
        self._attempt = attempt
        self._strict = start.strict
        self._repeated = 0
        self._exact: bool | None = None
        self._highest = math.inf
        self._above: StepDone | None = None  # the last step, where all since the resume had losses above the highest

    def check(self, done: StepDone, curve: LossCurve, limit: Limit) -> None:
        """Judge a step that was taken with ``limit``, before it is added to ``curve``. Raises LossJump."""
        before = self._start.repeated.get(done.step)
        taken = done.step - self._start.facts.step
        if taken == 1:
            self._highest = curve.highest_next()
        if before is None:
            is_above = done.loss > self._highest and (taken == 1 or self._above is not None)
            self._above = done if is_above else None
            if taken >= STEPS:
                self.confirm()
            return
        # Samples that are cut otherwise are summed in another order, which changes the weights from this step on.
        self._strict = self._strict and asdict(limit) == self._start.facts.limit
        same = before == done.loss or (math.isnan(before) and math.isnan(done.loss))
        self._repeated += 1
        self._exact = same and self._exact is not False
        if not same and self._strict:
            self._raise_jump(done, f"it was {before!r} before, and must be equal bit by bit")
        if taken == 1 and not same and not abs(done.loss - before) <= max(TOLERANCE * abs(before), NATS):
            self._raise_jump(done, f"it was {before!r} before, and must be within {TOLERANCE:.0%} or {NATS} nats of it")

    def confirm(self) -> None:
        """Make sure that something may rest on the steps since the resume. Raises LossJump."""
        if self._above is not None:
            since = "the first loss" if self._above.step == self._start.facts.step + 1 else "one loss since"
            self._raise_jump(self._above, f"{since} must be at most {self._highest:.6g} by those before")

    @property
    def result(self) -> Resumption:
        """What is known so far."""
        facts = self._start.facts
        notes = (*self._start.passed_over, *self._start.notes)
        return Resumption(self._attempt, facts.attempt, facts.step, self._repeated, self._exact, notes)

    def _raise_jump(self, done: StepDone, rule: str) -> None:
        folder = self._start.folder.parent
        raise LossJump(
            f"{folder}: resumed after step {self._start.facts.step}, the loss of step {done.step} is {done.loss!r}; "
            f"{rule}. Remove that folder to train from the start"
        )
