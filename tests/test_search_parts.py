"""Mixtures within limits, promotions between rungs, and where a search begins."""

from __future__ import annotations

import random

import pytest

from massive_sft.core.errors import InvalidInput
from massive_sft.search.promotion import AtRung, Promotion, next_promotion
from massive_sft.search.simplex import Limits, candidates, centres, fitted
from massive_sft.search.starting import learning_rate, portfolio

SHARES = {"alpaca": (0.05, 0.8), "gsm8k": (0.0, 0.6), "code": (0.0, 0.6), "flan": (0.0, 0.3)}
ROWS = {"alpaca": 50_000, "gsm8k": 7_473, "code": 1_000, "flan": 50_000}


def test_candidates_obey_bounds_repeats_and_the_cap_and_are_whole_and_distinct() -> None:
    limits = Limits(10_000, SHARES, ROWS, max_repeats=2, at_most=3)
    found = candidates(limits, 300, seed=0)
    assert len(found) == 300 == len({tuple(sorted(counts.items())) for counts in found})
    for counts in found:
        assert sum(counts.values()) == 10_000 and len(counts) <= 3
        assert 500 <= counts["alpaca"] <= 8_000 and counts.get("flan", 0) <= 3_000
        assert counts.get("code", 0) <= 2_000 and counts.get("gsm8k", 0) <= 6_000
    assert limits.bound_by_rows == ("code",)
    assert {len(counts) for counts in found} == {2, 3}


def test_more_candidates_begin_with_the_same_and_another_seed_gives_others() -> None:
    limits = Limits(10_000, SHARES, ROWS, max_repeats=2)
    assert candidates(limits, 100, seed=3)[:50] == candidates(limits, 50, seed=3)
    assert candidates(limits, 100, seed=3)[50:] != candidates(limits, 100, seed=4)[50:]


def test_centres_are_the_mixtures_that_other_blocks_train() -> None:
    free = Limits(12, dict.fromkeys("abc", (0.0, 1.0)), dict.fromkeys("abc", 100))
    assert centres(free, pairs=1) == [
        {"a": 12}, {"b": 12}, {"c": 12}, {"a": 4, "b": 4, "c": 4}, {"b": 6, "c": 6}, {"a": 6, "c": 6}, {"a": 6, "b": 6},
    ]  # fmt: skip
    assert centres(Limits(12, {"a": (0.0, 0.5), "b": (0.5, 1.0)}, {"a": 100, "b": 100})) == [
        {"a": 6, "b": 6},
        {"b": 12},
    ]


def test_weights_are_cut_at_limits_and_the_rest_shared_in_proportion() -> None:
    limits = Limits(100, {"a": (0.0, 0.5), "b": (0.0, 1.0), "c": (0.0, 1.0)}, {"a": 100, "b": 100, "c": 100})
    assert fitted(limits, {"a": 8.0, "b": 1.0, "c": 1.0}) == {"a": 50, "b": 25, "c": 25}
    assert fitted(limits, {"a": 1.0}) is None


@pytest.mark.parametrize(
    ("shares", "rows", "options", "message"),
    [
        ({"a": (0.0, 0.4), "b": (0.0, 0.5)}, 100, {}, "must be able to sum to 1 .*at most 90 of 100"),
        ({"a": (0.7, 0.8), "b": (0.5, 0.6)}, 100, {}, "least shares exceed it"),
        ({"a": (0.0, 1.0), "b": (0.0, 1.0)}, 20, {"max_repeats": 2}, "2 takes of a row.*at most 80"),
        ({"a": (0.5, 1.0), "b": (0.0, 1.0)}, 20, {}, "weights.a: must have a least share"),
        ({"a": (0.0, 0.5), "b": (0.0, 0.5), "c": (0.0, 0.5)}, 100, {"at_most": 1}, "with 1 datasets"),
        ({"a": (0.1, 0.9), "b": (0.1, 0.9), "c": (0.1, 0.9)}, 100, {"at_most": 2}, "with 2 datasets"),
    ],
)
def test_limits_that_no_mixture_meets_are_refused(
    shares: dict[str, tuple[float, float]], rows: int, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Limits(100, shares, dict.fromkeys(shares, rows), **options)


def at(rung: int, *values: float) -> list[AtRung]:
    return [AtRung(training, rung, value) for training, value in enumerate(values)]


def test_the_best_third_of_a_rung_goes_on_highest_rung_first_in_any_order_of_arrival() -> None:
    first = at(0, 1.0, 5.0, 3.0, 5.0, 2.0, 0.0, 4.0, 4.0, 4.0)
    assert next_promotion(first[:2], (), rungs=3, keep=1 / 3) is None
    assert next_promotion(first[:3], (), rungs=3, keep=1 / 3) == Promotion(1, 1)
    decided: list[Promotion] = []
    while (due := next_promotion(random.Random(0).sample(first, 9), decided, rungs=3, keep=1 / 3)) is not None:
        decided.append(due)
    assert decided == [Promotion(1, 1), Promotion(3, 1), Promotion(6, 1)]
    second = [AtRung(1, 1, 1.0), AtRung(3, 1, 2.0), AtRung(6, 1, 1.5)]
    assert next_promotion([*first, *second], decided[:2], rungs=3, keep=1 / 3) == Promotion(3, 2)
    assert next_promotion([*first, *second], [*decided, Promotion(3, 2)], rungs=3, keep=1 / 3) is None


def test_a_late_better_one_is_promoted_and_what_diverged_never_is() -> None:
    known = at(0, 1.0, 2.0, 3.0)
    assert next_promotion([*known, *[AtRung(n, 0, 4.0) for n in (3, 4, 5)]], [Promotion(2, 1)], 2, 1 / 3) == Promotion(
        3, 1
    )
    diverged = at(0, *[float("-inf")] * 3)
    assert next_promotion(diverged, (), rungs=2, keep=1 / 3) is None
    with pytest.raises(InvalidInput, match=r"rungs.keep: must be > 0 and < 1, got 1"):
        next_promotion(known, (), rungs=2, keep=1)


def test_portfolio_takes_what_covers_most_models_first() -> None:
    results = {
        "M1": {"a": 60.0, "b": 50.0, "c": 0.0},
        "M2": {"a": 6.0, "b": 5.9, "c": 1.0},
        "M3": {"a": 0.10, "b": 0.11, "c": 0.50, "d": 0.0},
    }
    assert portfolio(results, 2) == ["a", "c"]
    assert portfolio(results, 9) == ["a", "c", "b", "d"]
    assert portfolio({}, 3) == []


def test_without_knowledge_an_adapter_begins_at_ten_times_the_rate() -> None:
    assert learning_rate("lora") == pytest.approx(10 * learning_rate("full"))
    with pytest.raises(InvalidInput, match=r"method: must be known, got 'dora'.*valid: full, lora"):
        learning_rate("dora")
