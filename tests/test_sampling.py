"""Sampling: one permutation decided by the seed and the row numbers alone."""

import numpy as np
import pytest

from massive_sft.core.errors import InvalidInput
from massive_sft.data.row_sampling import draw, keys


def test_keys_of_the_first_rows_are_these_numbers_for_ever():
    assert keys(np.arange(3), 0).tolist() == [12035550249420947055, 3069472533636442495, 9405607414650848140]
    assert keys(np.array([0]), 0)[0] != keys(np.array([0]), 1)[0]


def test_keys_follow_splitmix64_written_in_plain_integers():
    def splitmix64(state):
        word = 2**64 - 1
        mixed = (state + 0x9E3779B97F4A7C15) & word
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & word
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & word
        return mixed ^ (mixed >> 31)

    for seed in (0, 1, -1, 2**63, 2**70):
        start = splitmix64(seed % 2**64)
        rows = [0, 1, 17, 2**40]
        assert keys(np.array(rows), seed).tolist() == [splitmix64((start + row) % 2**64) for row in rows]


def test_draw_from_twelve_rows_is_this_order_for_ever():
    assert draw(np.arange(12), None, 0).tolist() == [5, 7, 1, 4, 2, 8, 11, 10, 0, 6, 3, 9]
    assert draw(np.arange(12), None, 1).tolist() == [8, 6, 7, 9, 0, 5, 1, 3, 2, 10, 4, 11]


def test_draw_of_a_thousand_is_the_beginning_of_twenty_thousand():
    rows = np.arange(52_000)
    large = draw(rows, 20_000, 3)
    assert np.array_equal(draw(rows, 1_000, 3), large[:1_000])
    assert len(set(large.tolist())) == 20_000


def test_draw_is_spread_evenly_over_the_rows():
    drawn = draw(np.arange(100_000), 10_000, 0)
    counts = np.histogram(drawn, bins=10, range=(0, 100_000))[0]
    assert abs(counts - 1_000).max() < 120  # 4 standard deviations of a draw without replacement


def test_draw_after_a_filter_keeps_the_relative_order():
    rows = np.arange(1_000)
    kept = rows[rows % 3 == 0]
    whole = draw(rows, None, 5)
    assert np.array_equal(draw(kept, None, 5), whole[whole % 3 == 0])


def test_draw_does_not_depend_on_the_order_in_which_rows_are_given():
    rows = np.arange(100)
    assert np.array_equal(draw(rows[::-1], 40, 0), draw(rows, 40, 0))


def test_draw_beyond_the_rows_repeats_whole_passes_in_the_same_order():
    once = draw(np.arange(4), None, 0)
    assert draw(np.arange(4), 10, 0, max_repeats=3).tolist() == [*once, *once, *once[:2]]


@pytest.mark.parametrize(("count", "max_repeats"), [(5, 1), (9, 2)])
def test_draw_beyond_the_allowed_passes_says_how_many_are_available(count, max_repeats):
    with pytest.raises(InvalidInput) as caught:
        draw(np.arange(4), count, 0, max_repeats, place="mixtures.m: lima")
    assert f"must be at most {4 * max_repeats} samples: it has 4 rows" in str(caught.value)
    assert str(caught.value).startswith("mixtures.m: lima: ") and f"got {count}" in str(caught.value)
