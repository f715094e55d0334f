"""The surrogate: its covariance, posterior and gain against plain formulas, the stop rule against its own prior."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from massive_sft.core.errors import InvalidInput
from massive_sft.search.observations import Factor, Outcome, Space, Target
from massive_sft.search.surrogate import process as processes
from massive_sft.search.surrogate.asking import propose
from massive_sft.search.surrogate.kernels import Features
from massive_sft.search.surrogate.model import Known, Model, expected_improvement, expected_log_improvement, fit_model
from massive_sft.search.surrogate.stopping import judge

MODELS, DATA = ("M1", "M2", "M3"), ("alpaca", "code", "math", "flan")
GRID = Space(
    (Factor("model", "category", MODELS), Factor("data", "category", DATA), Factor("lr", "number", log=True)),
    tuple((model, data, lr) for model in MODELS for data in DATA for lr in (1e-5, 3e-5, 1e-4)),
)
EACH = Target(("gsm8k",), for_each="model")
Array = NDArray[np.float64]


def mixed_space(count: int, seed: int = 0) -> Space:
    """A category, a number and a mixture."""
    generator = np.random.default_rng(seed)
    factors = (
        Factor("model", "category", MODELS),
        Factor("lr", "number", log=True),
        Factor("mixture", "mixture", DATA),
    )
    shares = generator.dirichlet([0.5] * len(DATA), size=count)
    return Space(
        factors,
        tuple(
            (MODELS[index % 3], float(10 ** generator.uniform(-5, -3)), dict(zip(DATA, row.tolist(), strict=True)))
            for index, row in enumerate(shares)
        ),
    )


def told(values: Array, rows: list[int], variance: float = math.nan) -> list[Outcome]:
    return [Outcome(row, (float(values[row]),), (variance,)) for row in rows]


def test_kernel_is_positive_definite_and_one_parameter_set_gives_the_sum_of_its_variances_on_the_diagonal() -> None:
    features = Features.of(mixed_space(60))
    every = np.arange(60)
    prior = processes.Prior.of(features)
    generator = np.random.default_rng(1)
    for _ in range(5):
        parameters = prior.mean + prior.deviation * generator.standard_normal(len(prior.mean))
        process = processes.Process(features, parameters, every[:1], np.zeros(1), np.ones(1), 0.0, 1.0, 0.0)
        covariance = process.covariance(every, every)
        assert np.linalg.eigvalsh(covariance).min() > -1e-9
        np.testing.assert_allclose(np.diag(covariance), np.exp(parameters[: len(features.effects)]).sum())


def test_gradient_of_the_fit_is_that_of_differences() -> None:
    features, every = Features.of(mixed_space(30)), np.arange(30)
    values = np.random.default_rng(2).standard_normal(30)
    prior, distances = processes.Prior.of(features), features.distances(every, every)
    at = prior.mean + 0.3
    known = np.full(30, 0.1)
    _, gradient = processes._loss(at, features, distances, values, known, prior)
    for index in range(len(at)):
        step = np.eye(len(at))[index] * 1e-5
        above, _ = processes._loss(at + step, features, distances, values, known, prior)
        below, _ = processes._loss(at - step, features, distances, values, known, prior)
        assert gradient[index] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-4)


def test_posterior_is_that_of_the_direct_formula_and_pending_narrows_without_moving() -> None:
    features, rows, asked = Features.of(mixed_space(40)), np.arange(25), np.arange(25, 40)
    values = np.random.default_rng(3).standard_normal(25)
    process = processes.fit(features, rows, values, np.full(25, 0.01))
    mean, sd = process.posterior(asked, np.zeros(0, dtype=np.intp))
    inverse = np.linalg.inv(process.covariance(rows, rows) + np.diag(process.noise))
    cross = process.covariance(asked, rows)
    np.testing.assert_allclose(mean, cross @ inverse @ process.values, atol=1e-8)
    direct = process.covariance(asked, asked) - cross @ inverse @ cross.T
    np.testing.assert_allclose(sd**2, np.diag(direct), atol=1e-8)
    joint_mean, joint = process.joint(asked)
    np.testing.assert_allclose(joint_mean, mean)
    np.testing.assert_allclose(joint, direct, atol=1e-8)
    moved, narrowed = process.posterior(asked, asked[:1])
    np.testing.assert_allclose(moved, mean, atol=1e-8)
    assert narrowed[0] < sd[0] and (narrowed <= sd + 1e-12).all()


@pytest.mark.parametrize(("mean", "sd", "best"), [(0.0, 1.0, 0.5), (1.0, 0.3, 0.8), (-1.0, 0.5, 0.7)])
def test_gain_is_that_of_integration(mean: float, sd: float, best: float) -> None:
    points = np.array([mean]), np.array([sd])
    direct, _ = quad(lambda x: max(0.0, x - best) * norm.pdf(x, mean, sd), best, mean + 12 * sd + 5)
    assert expected_improvement(*points, np.array([best]))[0] == pytest.approx(direct, rel=1e-6)
    top = math.log(best)
    direct, _ = quad(lambda x: (math.exp(x) - best) * norm.pdf(x, mean, sd), top, mean + 12 * sd + 5)
    assert expected_log_improvement(*points, np.array([best]))[0] == pytest.approx(direct, rel=1e-6)


def test_known_noise_is_believed() -> None:
    """What was measured badly moves the prediction less than what was measured well."""
    values = np.zeros(len(GRID.candidates))
    values[:6] = [1.0, 5.0, 2.0, 4.0, 1.5, 3.5]
    features = Features.of(GRID)
    means = []
    for variance in (1e-4, 4.0):
        model = fit_model(features, Known.of(told(values, list(range(6)), variance), 0))
        means.append(model.moments(np.arange(6), np.zeros(0, dtype=np.intp))[0])
    assert np.abs(means[0] - values[:6]).max() < 0.5 * np.abs(means[1] - values[:6]).max()


def drawn_values(space: Space, generator: np.random.Generator) -> Array:
    """Values from the surrogate's own prior, away from 0."""
    features, every = Features.of(space), np.arange(len(space.candidates))
    prior = processes.Prior.of(features)
    parameters = prior.mean + prior.deviation * generator.standard_normal(len(prior.mean))
    parameters[-1] = math.log(1e-6)
    process = processes.Process(features, parameters, every[:1], np.zeros(1), np.full(1, 1e-6), 10.0, 1.0, 0.0)
    covariance = process.covariance(every, every) + 1e-9 * np.eye(len(every))
    return np.asarray(30.0 + 5 * np.linalg.cholesky(covariance) @ generator.standard_normal(len(every)))


def test_stop_rule_is_right_about_as_often_as_it_says_on_draws_from_its_prior() -> None:
    generator = np.random.default_rng(4)
    said, true = [], []
    for study in range(40):
        values = drawn_values(GRID, generator)
        rows = [int(row) for row in generator.permutation(len(values))[: 8 + study % 16]]
        verdict = judge(GRID, Target(("gsm8k",)), told(values, rows), study, regret=0.05, probability=0.9)
        said.append(verdict.probability)
        true.append((values.max() - values[rows].max()) / values.max() <= 0.05)
    sure = np.array(said) >= 0.8
    assert sure.sum() >= 8 and np.mean(np.array(true)[sure]) >= 0.75
    assert abs(np.mean(said) - np.mean(true)) < 0.15


def test_search_stops_on_a_plain_truth_finds_each_model_s_best_and_never_asks_twice() -> None:
    effect = {"alpaca": 20.0, "code": 5.0, "math": 35.0, "flan": 10.0}
    values = np.array([effect[str(data)] + 3 * MODELS.index(str(model)) for model, data, _ in GRID.candidates])
    values += 2 * np.array([math.log10(float(str(lr))) + 5 for *_, lr in GRID.candidates])
    outcomes: list[Outcome] = []
    while not outcomes or not judge(GRID, EACH, outcomes, 0, regret=0.05, probability=0.9).stop:
        outcomes += told(values, [one.candidate for one in propose(GRID, EACH, outcomes, seed=0, count=3)])
    asked = [outcome.candidate for outcome in outcomes]
    assert len(set(asked)) == len(asked) < 24
    standings = judge(GRID, EACH, outcomes, 0, regret=0.05, probability=0.9).standings
    for standing, model in zip(standings, MODELS, strict=True):
        best = max(value for value, candidate in zip(values, GRID.candidates, strict=True) if candidate[0] == model)
        assert standing.level == model and standing.value >= 0.95 * best


def test_proposals_are_equal_to_the_last_bit_in_any_order_of_outcomes_and_one_by_one() -> None:
    space, target = mixed_space(50), Target(("gsm8k", "mmlu"))
    generator = np.random.default_rng(5)
    outcomes = [Outcome(row, (float(generator.normal()), float(generator.normal()))) for row in range(12)]
    outcomes.append(Outcome(13, status="pending"))
    together = propose(space, target, outcomes, seed=7, count=3)
    shuffled = random.Random(0).sample(outcomes, len(outcomes))
    assert propose(space, target, shuffled, seed=7, count=3) == together
    for proposal in together:
        assert propose(space, target, outcomes, seed=7) == (proposal,)
        outcomes.append(Outcome(proposal.candidate, status="pending"))
    assert judge(space, target, outcomes, 3, 0.05, 0.9) == judge(space, target, shuffled + outcomes[13:], 3, 0.05, 0.9)


def test_start_spreads_over_models_and_data_and_depends_on_the_seed() -> None:
    first = propose(GRID, EACH, [], seed=0, count=4)
    chosen = [GRID.candidates[proposal.candidate] for proposal in first]
    assert {values[1] for values in chosen} == set(DATA) and {values[0] for values in chosen} == set(MODELS)
    assert first != propose(GRID, EACH, [], seed=1, count=4)


def test_diverged_counts_as_worse_than_the_worst_and_drives_away() -> None:
    space = Space((Factor("lr", "number", log=True),), tuple((10.0**-power,) for power in np.linspace(2, 6, 41)))
    outcomes = [Outcome(0, status="diverged"), Outcome(4, status="diverged")]
    outcomes += [Outcome(row, (value,)) for row, value in ((15, 60.0), (25, 55.0), (40, 30.0))]
    known = Known.of(outcomes, 0)
    assert known.values[:2].tolist() == [30.0 - np.std([60.0, 55.0, 30.0])] * 2
    assert all(proposal.candidate > 7 for proposal in propose(space, Target(("gsm8k",)), outcomes, seed=0, count=5))


def test_only_candidates_that_are_allowed_are_proposed_until_there_are_none() -> None:
    outcomes = told(np.linspace(1, 2, len(GRID.candidates)), [0, 5, 10])
    found = propose(GRID, EACH, outcomes, seed=0, allowed={0, 7, 8}, count=5)
    assert {proposal.candidate for proposal in found} == {7, 8}
    assert propose(GRID, EACH, outcomes, seed=0, allowed={0}) == ()


def test_values_and_their_logarithm_both_have_their_say_and_draws_agree_with_what_is_said() -> None:
    features, untried = Features.of(GRID), np.arange(1, 36, 2)
    effects = np.random.default_rng(6).normal(size=4)
    logs = np.array(
        [2 * effects[DATA.index(str(data))] + MODELS.index(str(model)) for model, data, _ in GRID.candidates]
    )
    model = fit_model(features, Known.of(told(np.exp(logs), list(range(0, 36, 2))), 0))
    assert [member.offset is None for member in model.members] == [True, False]
    none = np.zeros(0, dtype=np.intp)
    for one in (*model.members, model):
        mean, sd = one.moments(untried, none)
        members = one.members if isinstance(one, Model) else (one,)
        drawn = Model(members).draws(untried, 40_000, np.random.default_rng(0))
        np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.1 * sd.max())
        gain = np.maximum(drawn - mean - sd, 0).mean(axis=0)
        np.testing.assert_allclose(one.gain(untried, none, mean + sd), gain, atol=0.1 * gain.max())


def test_input_that_makes_no_sense_is_refused_with_its_place() -> None:
    lr = Factor("lr", "number", log=True)
    with pytest.raises(InvalidInput, match="at least one candidate"):
        Space((lr,), ())
    with pytest.raises(InvalidInput, match=r"candidate 1: lr: must be > 0"):
        Space((lr,), ((1e-5,), (0.0,)))
    with pytest.raises(InvalidInput, match="shares >= 0 that sum to 1"):
        Space((Factor("mixture", "mixture", DATA),), (({"alpaca": 0.5},),))
    with pytest.raises(InvalidInput, match="for_each: must be a factor that is a category"):
        propose(GRID, Target(("gsm8k",), for_each="lr"), told(np.ones(36), [0, 1, 2]), seed=0)
    with pytest.raises(InvalidInput, match=r"outcome 0: must be a candidate of the space, 0 to 35, got 36"):
        propose(GRID, EACH, [Outcome(36, (1.0,))], seed=0)
    with pytest.raises(InvalidInput, match=r"stop.probability: must be > 0 and < 1, got 1.5"):
        judge(GRID, EACH, [], 0, regret=0.05, probability=1.5)


def test_objective_that_nothing_has_reached_does_not_have_every_proposal() -> None:
    """A gain over 0 is without end where it is taken relative to it."""
    tried = [Outcome(index, (float(index % 5), 0.0)) for index in (0, 7, 14, 21, 28)]
    found = propose(GRID, Target(("gsm8k", "humaneval")), tried, seed=0)[0]
    assert found.objective == "gsm8k"
    assert 0 < found.acquisition < 10
