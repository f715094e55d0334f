"""Who chooses: ours, random, and Optuna's samplers as pure functions, all from a pool and what is told of it.

A method is called with the pool, the answers' level, what is told (by candidate), those pending, a seed and how many to
choose. Optuna's samplers are made anew for each choice, seeded, over an in-memory study rebuilt from what is told; their
suggestion is taken to the nearest candidate not asked yet. With one answer a level, each level has a study, and they take
turns: the one with the fewest candidates asked is next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optuna
from tables import Table

from massive_sft.search.observations import Outcome, Target
from massive_sft.search.surrogate.asking import propose
from massive_sft.search.surrogate.kernels import Features

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore")
Told = Mapping[int, np.ndarray]
Method = Callable[[Table, str | None, Told, Sequence[int], int, int], list[int]]
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed % 1000, scramble=True, qmc_type="sobol"),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=1),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True),
}


def outcomes_of(told: Told, pending: Sequence[int]) -> list[Outcome]:
    """Return what is told as the surrogate takes it."""
    known = [Outcome(row, tuple(values.tolist())) for row, values in told.items()]
    return known + [Outcome(row, status="pending") for row in pending]


def ours(table: Table, each: str | None, told: Told, pending: Sequence[int], seed: int, count: int) -> list[int]:
    """Choose by the surrogate."""
    found = propose(table.space, Target(table.objectives, each), outcomes_of(told, pending), seed, count=count)
    return [proposal.candidate for proposal in found]


def by_lot(table: Table, each: str | None, told: Told, pending: Sequence[int], seed: int, count: int) -> list[int]:
    """Choose at random."""
    rest = np.setdiff1d(np.arange(len(table.values)), [*told, *pending])
    return np.random.default_rng([seed, len(told)]).permutation(rest)[:count].tolist()


def by_optuna(name: str) -> Method:
    """Return the method that chooses by a sampler of Optuna."""

    def choose(table: Table, each: str | None, told: Told, pending: Sequence[int], seed: int, count: int) -> list[int]:
        features, levels = Features.of(table.space), table.levels(each)
        found: list[int] = []
        for _ in range(min(count, len(levels) - len(told) - len(pending))):
            waiting = [*pending, *found]
            asked = [*told, *waiting]
            left = np.setdiff1d(np.arange(len(levels)), asked)
            counts = np.bincount(levels[asked], minlength=levels.max() + 1)
            level = min(np.unique(levels[left]), key=lambda place: (counts[place], place))
            rows = np.flatnonzero(levels == level)
            found.append(_suggested(name, table, features, rows, told, waiting, seed * 1000 + len(asked)))
        return found

    return choose


def _suggested(
    name: str, table: Table, features: Features, rows: np.ndarray, told: Told, waiting: Sequence[int], seed: int
) -> int:
    """Return what a sampler suggests among the rows of a level, taken to the nearest that was not asked."""
    own = features.kinds, [column[rows] for column in features.columns]
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    points: dict[str, np.ndarray] = {}
    for place, (kind, column) in enumerate(zip(*own, strict=True)):
        for axis in range(column.shape[1]):
            values, label = column[:, axis], f"{place}.{axis}"
            if np.ptp(values) == 0:
                continue
            points[label] = values
            if kind == "category":
                space[label] = optuna.distributions.CategoricalDistribution(np.unique(values).tolist())
            else:
                space[label] = optuna.distributions.FloatDistribution(float(values.min()), float(values.max()))
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[name](seed))
    place_of = {int(row): place for place, row in enumerate(rows)}
    for row in [*told, *waiting]:
        if row not in place_of:
            continue
        params = {label: float(values[place_of[row]]) for label, values in points.items()}
        done = row in told
        state = optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.RUNNING
        value = float(told[row][0]) if done else None
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value, state=state))
    asked = study.ask(space).params
    left = np.array([place for row, place in place_of.items() if row not in told and row not in waiting])
    away = np.zeros(len(left))
    for label, values in points.items():
        apart = values[left] - asked[label]
        away += (apart != 0) if isinstance(space[label], optuna.distributions.CategoricalDistribution) else apart**2
    nearest = left[np.flatnonzero(away == away.min())]
    return int(rows[np.random.default_rng(seed).choice(nearest)])


METHODS: dict[str, Method] = {"ours": ours, "random": by_lot} | {name: by_optuna(name) for name in SAMPLERS}
