"""When a run counts as DIVERGED: the rule of the design, and when it is hopeless enough to stop early."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, median

# Nats per trainable token.
RISE_NATS = 0.5
EXPLOSION_NATS = 10.0
# Standard errors. The noise itself is estimated, so four are not enough: one noisy run in 300 would exceed them.
STANDARD_ERRORS = 5.0


def window_of(steps: int) -> int:
    """Return over how many steps at either end of a run its first and its last loss are means: 5 %, at least 5."""
    return max(5, math.ceil(0.05 * steps))


class LossCurve:
    """The losses of a run and the verdict on them.

    A run has diverged when a loss or gradient norm is not finite, or when its mean loss over the last 5 % of steps
    (at least 5) is more than 0.5 nats above where it began: the mean over the first 5 % of steps (at least 5).

    - Batches differ, so the rise must also exceed five standard errors of the two means, unless the model began
      better than guessing, ln(vocabulary), and ended more than a nat worse than that. The noise is taken from the
      median difference of successive losses, which neither a trend nor a jump changes much.
    - A run that blows up within its first steps hides where it began. So the first loss, taken before any update,
      counts as the beginning too, with five standard deviations of the noise added.

    It is hopeless before the end when the mean of the last window (5 % of steps, at least 5) is 10 nats above both
    the first loss and ln(vocabulary), or when, past the half, a whole quarter of the run was no better than
    ln(vocabulary) - 0.1 and has risen by the rule above. Noise and a spike that heals do neither.

    Args:
        steps: optimizer steps of the whole run.
        vocabulary: size of the vocabulary.
    """

    def __init__(self, steps: int, vocabulary: int):
        self.steps = steps
        self.window = window_of(steps)
        self.losses: list[float] = []
        self._uniform = math.log(vocabulary)

    def add(self, loss: float, grad_norm: float) -> str | None:
        """Add one step; return the reason to stop now, or None."""
        self.losses.append(loss)
        step = len(self.losses)
        if not math.isfinite(loss):
            return f"loss is not finite at step {step}"
        if not math.isfinite(grad_norm):
            return f"gradient norm is not finite at step {step}"
        if step <= self.window:
            return None
        recent = self.end()
        if recent > max(self.losses[0], self._uniform) + EXPLOSION_NATS:
            return f"loss exploded: mean {recent:.4g} over the last {self.window} steps at step {step}"
        quarter = max(self.window, self.steps // 4)
        if 2 * step < self.steps or step < quarter:
            return None
        stuck = fmean(self.losses[-quarter:])
        if stuck > self._uniform - 0.1 and self._risen(stuck):
            return f"mean loss of the last {quarter} steps {stuck:.4g}, no better than guessing, at step {step}"
        return None

    def final(self) -> str | None:
        """Return why the finished run has diverged, or None when it has not."""
        if not self.losses or not self._risen(self.end()):
            return None
        if len(self.losses) <= self.window:
            return f"mean loss of its {len(self.losses)} steps {self.end():.4g}; it began at {self.losses[0]:.4g}"
        means = f"means of {self.window} steps; from {self.start():.4g}"
        return f"loss ended at {self.end():.4g} ({means}); the first step's was {self.losses[0]:.4g}"

    def start(self) -> float:
        """Mean loss over the first window."""
        return fmean(self.losses[: self.window])

    def end(self) -> float:
        """Mean loss over the last window."""
        return fmean(self.losses[-self.window :])

    def highest_next(self) -> float:
        """Return the highest plausible loss of the next step: above the last window's by the rise and noise allowed.

        Infinity before there are five steps, when the noise is not known.
        """
        if len(self.losses) < 5:
            return math.inf
        return max(self.losses[-self.window :]) + max(RISE_NATS, STANDARD_ERRORS * self._noise())

    def _risen(self, level: float) -> bool:
        """Return whether a mean loss lies above the beginning by more than the rule allows."""
        slack = 0.0 if level > self._uniform + 1 > self.losses[0] + 1 else STANDARD_ERRORS * self._noise()
        return (
            level > self.start() + max(RISE_NATS, slack * math.sqrt(2 / self.window))
            or level > self.losses[0] + RISE_NATS + slack
        )

    def _noise(self) -> float:
        """Standard deviation of the loss between batches: of a normal noise, from its median successive difference."""
        if len(self.losses) < 2:
            return 0.0
        differences = [abs(after - before) for before, after in zip(self.losses, self.losses[1:], strict=False)]
        return median(differences) / (0.6745 * math.sqrt(2))


class DivergenceMonitor:
    """The verdict on each snapshot of a run, by the losses up to its own epoch alone.

    So it never depends on how far the run went on: each epoch has a curve of its own length.

    Attributes:
        diverged: by epoch, why the run had diverged by its end; empty when it had not. Holds the epochs judged so far.
    """

    def __init__(self, epochs: Iterable[int], steps_per_epoch: int, vocabulary: int):
        self._curves = {epoch: LossCurve(epoch * steps_per_epoch, vocabulary) for epoch in sorted(epochs)}
        self.diverged: dict[int, str] = {}

    @property
    def curve(self) -> LossCurve:
        """The curve of the last epoch, which has all losses."""
        return self._curves[max(self._curves)]

    def add(self, loss: float, grad_norm: float) -> str | None:
        """Add one step; return why to stop now: every snapshot still to come has diverged already. Else None."""
        step = len(self.curve.losses) + 1
        for epoch, curve in self._curves.items():
            if curve.steps < step:
                continue
            reason = curve.add(loss, grad_norm)
            if reason is None and curve.steps == step:
                reason = curve.final() or ""
            if reason is not None:
                self.diverged.setdefault(epoch, reason)
        ahead = [epoch for epoch, curve in self._curves.items() if curve.steps > step]
        if ahead and all(self.diverged.get(epoch) for epoch in ahead):
            return self.diverged[ahead[0]]
        return None
