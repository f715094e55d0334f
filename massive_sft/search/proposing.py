"""What Optuna proposes, as a function: nothing of it outlives one proposal.

A study that lives has the state of its random numbers and a cache of fits in its process, so it diverges when it is
started again. Here a sampler is new for each proposal, seeded by the decision's number, over a study that is built
again from what was decided: that gives the same as one that lived, and the log alone is the truth.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from massive_sft.search.space import Axis, Choice
from massive_sft.sweep.setting import takes_whole_numbers

STARTUP = 4  # trials with an outcome below which Optuna's samplers draw at random


@dataclass(frozen=True)
class Tried:
    """A choice that was asked before.

    Attributes:
        values: of the objectives, better when larger; None while they are not known.
        violations: of the constraints, kept where none is above 0.
    """

    choice: Choice
    values: tuple[float, ...] | None = None
    violations: Mapping[str, float] | None = None


@cache
def versions() -> dict[str, str]:
    """Return the versions of what proposals rest on."""
    return {name: version(name) for name in ("numpy", "optuna", "scipy", "torch")}


def propose(axes: Sequence[Axis], sampler: str, tried: Sequence[Tried], objectives: int, seed: int) -> Choice:
    """Return what to try next.

    Args:
        tried: in the order in which they were asked.
        objectives: how many there are.
        seed: of this proposal alone.
    """
    if sampler == "random":
        import numpy as np

        drawn = np.random.default_rng(seed).random(len(axes))
        return {axis.name: axis.at(share) for axis, share in zip(axes, drawn.tolist(), strict=True)}
    study, distributions = rebuilt(axes, sampler, tried, objectives, seed)
    params = study.ask(distributions).params
    return {axis.name: axis.rounded(params[axis.name]) for axis in axes}


def rebuilt(axes: Sequence[Axis], sampler: str, tried: Sequence[Tried], objectives: int, seed: int) -> tuple[Any, Any]:
    """Return a study of everything that was tried, with a new sampler, and the distributions to ask for."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    distributions = {axis.name: _distribution(axis) for axis in axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is experimental is pinned by the version in each decision
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=_sampler(sampler, seed))
    for one in tried:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING if one.values is None else optuna.trial.TrialState.COMPLETE,
                params={axis.name: one.choice[axis.name] for axis in axes},
                distributions=distributions,
                values=one.values,
                constraints=None if one.values is None else dict(one.violations or {}) or None,
            )
        )
    return study, distributions


def _sampler(name: str, seed: int) -> Any:
    import optuna

    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high = axis.ends
    if axis.is_range and takes_whole_numbers(axis.name):
        return _shared(IntDistribution)(int(low), int(high), log=axis.kind == "log")
    if axis.is_range:
        return _shared(FloatDistribution)(low, high, log=axis.kind == "log")
    if axis.kind == "ordered":
        return _shared(IntDistribution)(0, len(axis.values) - 1)
    return _shared(CategoricalDistribution)(tuple(range(len(axis.values))))


@cache
def _shared(kind: type) -> type:
    """Return a kind of distribution that copies of a trial share: Optuna copies each trial that a study is given.

    Of several hundred trials, that would be most of what a proposal takes.
    """
    return type(kind.__name__, (kind,), {"__deepcopy__": lambda self, memo: self})


def spread(axes: Sequence[Axis], count: int, seed: int) -> list[Choice]:
    """Return choices spread evenly over a space; the first of more are the same."""
    import numpy as np
    from scipy.stats import qmc

    drawn = qmc.Halton(len(axes), scramble=True, rng=np.random.default_rng(seed)).random(count)
    return [{axis.name: axis.at(share) for axis, share in zip(axes, row, strict=True)} for row in drawn.tolist()]
