"""The mixture algebra, down to the counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from massive_sft.sweep.mixture import expand_mixtures, largest_remainder
from massive_sft.sweep.schema import Dataset, Mixtures

DATASETS = {name: Dataset(path=f"{name}.jsonl", format="p3") for name in "abc"}


def names_and_counts(entry: str, **entries: object) -> dict[str, dict[str, int | None]]:
    groups, problems = expand_mixtures(Mixtures.model_validate(entries), DATASETS, "mixtures")
    assert not problems
    return {mixture.name: {part.name: part.count for part in mixture.parts} for mixture in groups[entry]}


def test_each_yields_one_mixture_a_dataset() -> None:
    assert names_and_counts("x", x={"each": ["a", "b"], "samples": 10}) == {"a": {"a": 10}, "b": {"b": 10}}


def test_each_without_samples_takes_all_rows() -> None:
    assert names_and_counts("x", x={"each": "a"}) == {"a": {"a": None}}


def test_concat_takes_exactly_the_rows_of_its_members() -> None:
    made = names_and_counts("all", x={"each": ["a", "b"], "samples": 10}, all={"concat": "x"})
    assert made == {"all": {"a": 10, "b": 10}}


def test_leave_one_out_drops_each_part_in_turn() -> None:
    entries = {"x": {"each": ["a", "b", "c"], "samples": 5}, "all": {"concat": "x"}, "w/o": {"leave_one_out": "all"}}
    assert names_and_counts("w/o", **entries) == {
        "w/o-a": {"b": 5, "c": 5},
        "w/o-b": {"a": 5, "c": 5},
        "w/o-c": {"a": 5, "b": 5},
    }


def test_weights_round_by_largest_remainder() -> None:
    assert names_and_counts("x", x={"weights": {"a": 1, "b": 1, "c": 1}, "samples": 10}) == {
        "x": {"a": 4, "b": 3, "c": 3}
    }


@given(st.dictionaries(st.text(min_size=1), st.floats(1e-6, 1e6), min_size=1, max_size=8), st.integers(1, 100_000))
def test_largest_remainder_adds_up_and_is_off_by_less_than_one(weights: dict[str, float], total: int) -> None:
    counts = largest_remainder(weights, total)
    assert sum(counts.values()) == total
    for name, weight in weights.items():
        assert abs(counts[name] - total * weight / sum(weights.values())) < 1 + 1e-6 * total


def test_largest_remainder_ignores_the_order_of_names() -> None:
    assert largest_remainder({"b": 1, "a": 1}, 3) == largest_remainder({"a": 1, "b": 1}, 3) == {"a": 2, "b": 1}


def test_one_name_and_size_for_two_contents_is_refused() -> None:
    entries = {"x": {"each": "a", "samples": 2}, "a": {"weights": {"b": 1}, "samples": 2}}
    _, problems = expand_mixtures(Mixtures.model_validate(entries), DATASETS, "mixtures")
    assert "yields 'a' with 2 samples, but so does" in str(problems[0])
