"""When a run counts as DIVERGED: the rule of the design, and when it is hopeless enough to stop early."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

# Nats per trainable token.
RISE = 0.5
EXPLOSION = 10.0


class LossCurve:
    """The losses of a run and the verdict on them.

    Args:
        steps: optimizer steps of the whole run.
        vocabulary: size of the vocabulary; a model that knows nothing has a loss of ln(vocabulary).

    A run has diverged when a loss or gradient norm is not finite, or when its mean loss over the last 5 % of steps
    (at least 5) is more than 0.5 nats above where it began: the mean over the first 5 % of steps (at least 5).
    A run that blows up within those first steps would hide where it began, so the first loss, taken before any
    update, plus three standard deviations of the later half of the run stands for it when that is lower.

    It is hopeless before the end when the last window's mean is 10 nats above both the first loss and
    ln(vocabulary), or when, past the half, a whole quarter of the run was no better than ln(vocabulary) - 0.1 and
    0.5 nats above where it began. Noise and a spike that heals do neither.
    """

    def __init__(self, steps: int, vocabulary: int):
        self.steps = steps
        self.window = max(5, math.ceil(0.05 * steps))
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
        return self._hopeless(step)

    def _hopeless(self, step: int) -> str | None:
        if step <= self.window:
            return None
        recent = fmean(self.losses[-self.window :])
        if recent > max(self.losses[0], self._uniform) + EXPLOSION:
            return f"loss exploded: mean {recent:.4g} over the last {self.window} steps at step {step}"
        quarter = max(self.window, self.steps // 4)
        if 2 * step < self.steps or step < quarter:
            return None
        stuck = fmean(self.losses[-quarter:])
        if stuck > self._uniform - 0.1 and stuck > self._start() + RISE:
            return f"loss is stuck at {stuck:.4g}, no better than guessing, at step {step}"
        return None

    def final(self) -> str | None:
        """Return why the finished run has diverged, or None when it has not."""
        if not self.losses:
            return None
        start, end = self._start(), self.end()
        if end > start + RISE:
            return f"loss ended at {end:.4g}, {end - start:.4g} above where it began"
        return None

    def _start(self) -> float:
        later = self.losses[len(self.losses) // 2 :]
        return min(self.start(), self.losses[0] + 3 * pstdev(later))

    def start(self) -> float:
        """Mean loss over the first window."""
        return fmean(self.losses[: self.window])

    def end(self) -> float:
        """Mean loss over the last window."""
        return fmean(self.losses[-self.window :])
