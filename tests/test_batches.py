"""Order, batches and learning rates."""

from __future__ import annotations

import numpy as np
import pytest

from massive_sft.sweep.schema import Schedule
from massive_sft.training.batches import batch_of, epoch_order, steps_per_epoch
from massive_sft.training.schedule import learning_rate


def test_epoch_order_any_seed_is_a_permutation() -> None:
    for seed in (0, 1, -5, 2**70):
        assert sorted(epoch_order(100, seed, 1)) == list(range(100))


def test_epoch_order_is_pinned() -> None:
    assert epoch_order(8, seed=0, epoch=1).tolist() == [3, 5, 0, 4, 2, 1, 7, 6]


def test_epoch_order_differs_by_seed_and_by_epoch() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (1, 2)]
    assert len(set(orders)) == 4


def test_batches_of_an_epoch_keep_the_short_last_one_and_cover_each_sample_once() -> None:
    order = epoch_order(10, 0, 1)
    batches = [batch_of(order, 4, step) for step in range(steps_per_epoch(10, 4))]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("constant", 0, 1.0),
        ("constant", 500, 1.0),
        ("linear", 0, 1.0),
        ("linear", 50, 0.55),
        ("linear", 100, 0.1),
        ("linear", 200, 0.1),
        ("cosine", 0, 1.0),
        ("cosine", 50, 0.55),
        ("cosine", 100, 0.1),
        ("wsd", 80, 1.0),
        ("wsd", 90, 0.55),
        ("wsd", 100, 0.1),
    ],
)
def test_learning_rate_key_points(name: str, step: int, expected: float) -> None:
    schedule = Schedule(name=name, final=0.1, decay=0.2)
    assert learning_rate(schedule, 1.0, step, horizon_steps=100, warmup_steps=0) == pytest.approx(expected)


def test_learning_rate_warm_up_rises_to_the_peak_without_reaching_it() -> None:
    rates = [learning_rate(Schedule(name="cosine"), 4.0, step, 100, warmup_steps=3) for step in range(4)]
    assert rates == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_learning_rate_warm_up_longer_than_the_horizon_stays_finite() -> None:
    for name in ("constant", "cosine", "linear", "wsd"):
        assert learning_rate(Schedule(name=name), 1.0, step=12, horizon_steps=10, warmup_steps=20) == 13 / 21
