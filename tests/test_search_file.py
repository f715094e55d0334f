"""``search:`` in a sweep file: what is accepted, and everything that is wrong with one at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from sample_records import sweep_file

from massive_sft.core.errors import InvalidInput
from massive_sft.sweep.json_schema import json_schema
from massive_sft.sweep.load import load_sweep

EXAMPLES = Path(__file__).parent / "data" / "searches.yaml"
LORA: dict[str, Any] = {
    "name": "s", "model": "small", "mixture": "first", "setting": "lora", "objective": {"maximize": "quiz"},
    "space": {"lr": {"log": [1e-5, 1e-3]}, "lora.rank": [4, 8]}, "trials": 8,
}  # fmt: skip


def problems(folder: Path, *searches: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        load_sweep(sweep_file(folder, search=list(searches)))
    return [str(problem).partition("sweep.yaml: ")[2] for problem in caught.value.problems]


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in LORA.items() if key not in keys} | changes


def test_examples_of_the_guide_are_accepted_and_fit_the_schema_of_editors() -> None:
    searches = load_sweep(EXAMPLES).file.search
    assert [search.name for search in searches] == ["lora", "trade-off", "rungs", "weights", "best-data"]
    assert (searches[1].space, searches[1].trials) == (searches[0].space, 60)
    assert searches[2].rungs is not None
    assert searches[2].rungs.keep == pytest.approx(1 / 3)
    jsonschema.validate(YAML(typ="safe").load(EXAMPLES), json_schema())


def test_sweep_may_have_searches_alone(tmp_path: Path) -> None:
    assert load_sweep(sweep_file(tmp_path, blocks=[], search=[LORA])).file.search[0].name == "s"


def test_search_over_blocks_that_are_no_list_is_not_blamed_as_well(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as found:
        load_sweep(sweep_file(tmp_path, blocks=3, search=[LORA]))
    assert [problem.rule for problem in found.value.problems] == ["must be a list"]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    space = {"lr": {"log": [1e-3, 1e-5]}, "bacth": [1, 2], "lora.alpha": {"times": "lora.rnak", "by": [1, 2]}}
    space |= {"lora.rank": {"powers_of_2": [3, 8]}, "batch": [0, 8]}
    wrong = without(model="smal", space=space, start={"qmc": 9, "pairs": 2}, constraints={"prose": {}})
    found = problems(tmp_path, wrong, without("trials", "setting", name="t"), {"from": "u", "name": "v"})
    assert {line.split(",")[0].split(";")[0] for line in found} == {
        "search[2].from: unknown search",
        "search[2].objective: is required",
        "search[0].model: unknown model",
        "search[0].space.lr.log: must end above its beginning",
        "search[0].space: unknown axis",
        'search[0].space."lora.alpha".times: must be a numeric field of the setting',
        'search[0].space."lora.rank".powers_of_2: must be two powers of 2',
        "search[0].space.batch: must be > 0",
        "search[0].trials: is below the start",
        "search[0].start.pairs: has no effect without weights that are searched",
        "search[0].constraints.prose: must have at_least or at_most",
        "search[1].trials: is required",
        "search[1].setting: is required",
    }


def test_names_and_axes_are_told_beside_a_key_that_is_misspelt(tmp_path: Path) -> None:
    space = {"lr": {"log": [1e-3, 1e-5]}, "bacth": [1, 2], "lora.rank": [8, 16]}
    wrong = without("trials", "objective", model="smal", mixture="on", space=space, trails=8)
    assert {line.split(",")[0].split(";")[0] for line in problems(tmp_path, wrong)} == {
        "search[0]: unknown key",
        "search[0].objective: is required",
        "search[0].model: unknown model",
        "search[0].mixture: unknown mixture",
        "search[0].space.lr.log: must end above its beginning",
        "search[0].space: unknown axis",
    }


def test_axes_are_not_judged_by_what_is_wrong_itself(tmp_path: Path) -> None:
    wrong = without(space={"lr": {"logg": [1e-3, 1e-5]}, "batch": [32]}), without(space={}, mixture={"wieghts": {}})
    assert not [line for line in problems(tmp_path, *wrong) if "one point" in line or "must not be empty" in line]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (without(space={}), "search[0].space: must not be empty: there is nothing to search"),
        (without(space={"batch": [32]}), "search[0].space: has one point, which needs no search: make it a block"),
        (without(model="all"), "search[0].model: stands for 2 models, but a search tries one at a time"),
        (without(mixture="one"), "search[0].mixture: stands for 2 mixtures, but a search tries one at a time"),
        (without(setting="full"), 'search[0].space."lora.rank": has no effect in a setting of method full'),
        (without(name="A"), "search: a block has this name"),
        (without(name="a/b"), "search[0].name: must be of the letters a to z and A to Z, digits"),
        (without(name=300 * "a"), "search[0].name: must have at most 200 characters, not 300"),
        (
            without(schedule="cosine", horizon=4, rungs={"at": [1, 4]}),
            "search[0].schedule: must be constant with rungs: an early snapshot of a schedule that decays is another",
        ),
        (without(horizon=2, rungs={"at": [1, 3]}), "search[0].rungs.at: 3 is beyond horizon 2"),
        (without(horizon=3, rungs={"at": [1, 3], "keep": "5/0"}), "search[0].rungs.keep: must be a number between 0"),
        (
            without(mixture={"samples": 100, "weights": {"first": [0.6, 1], "second": [0.6, 1]}}),
            "search[0].mixture.weights: must be able to add up to 1, but the least shares already make 1.2",
        ),
        (
            without(mixture={"samples": 100, "weights": {"first": [0, 0.4], "second": [0, 0.4]}}),
            "search[0].mixture.weights: must be able to add up to 1, but the greatest shares make only 0.8",
        ),
        (
            without(mixture={"samples": 100, "at_most": 1, "weights": {"first": [0, 0.9], "second": [0, 0.4]}}),
            "search[0].mixture.at_most: must leave room",
        ),
        (
            {"name": "s", "over": ["A"], "horizon": 3, "objective": {"maximize": "quiz"}, "trials": 4},
            "search[0].horizon: has no effect beside over",
        ),
        (
            {"name": "s", "over": ["B"], "objective": {"maximize": "quiz"}},
            "search[0].over: unknown block, got 'B'; valid: A",
        ),
        (without(space={"optimizer.betas": {"linear": [0.9, 0.99]}}), 'search[0].space."optimizer.betas": must be a list'),
        (
            without(space={"lora.alpha": {"times": "loss_on", "by": 2}, "loss_on": ["all", "completion"]}),
            'search[0].space."lora.alpha".times: must be a numeric field of the setting',
        ),
        (
            without(space={"lora.rank": {"times": "batch", "by": [0.3, 2]}, "batch": [32, 64]}),
            'search[0].space."lora.rank": must be a valid integer, got 9.6',
        ),
        (
            without(space={"lora.rank": {"times": "batch", "by": [0.5, 1]}, "batch": {"linear": [2, 64]}}),
            'search[0].space."lora.rank": must give whole numbers',
        ),
        (
            without(space={"lora.alpha": {"times": "lora.rank", "by": 2}, "lora.rank": {"times": "batch", "by": [1, 2]}}),
            'search[0].space."lora.alpha".times: must be a field that is no multiple itself',
        ),
        (without(space={"batch": [32, 32]}), "search[0].space.batch: must name each once, but 32 is there twice"),
        (
            without(space={"model": ["tiny", "small"], "batch": [1, 2]}, model="small"),
            "search[0].model: is another than space.model",
        ),
        (
            without("model", space={"model": ["all"]}, objective={"maximize": "quiz", "for_each": "model"}),
            "search[0].objective.for_each: has no effect on models in space",
        ),
        (
            without(space={"seed": [0, 1]}, confirm={"seeds": [2]}),
            "search[0].confirm: has no effect beside space.seed",
        ),
        (
            without(constraints={"prose": {"at_least": "base * 2"}}),
            "search[0].constraints.prose.at_least: must be a number, or one against the base model's score",
        ),
        (
            without(constraints={"prose": {"at_least": b"5"}}),
            "search[0].constraints.prose.at_least: must be a",
        ),
        (
            without(space={"lora.rank": [4, 10**400], "lora.alpha": {"times": "lora.rank", "by": [1, 2.5]}}),
            'search[0].space."lora.rank": must be <= 65536',
        ),
        (
            without(constraints={"prose": {"at_least": 5, "at_most": 4}}),
            "search[0].constraints.prose: cannot be kept: at_least 5 is above at_most 4",
        ),
        (
            without(mixture={"samples": 9, "weights": {"first": [0, 1]}}),
            "search[0].mixture.weights: must have at least 2 entries, not 1",
        ),
        (without(objective={"maximize": "quiz", "minimize": "prose"}), "search[0].objective: must have exactly one of"),
    ],
)  # fmt: skip
def test_search_that_cannot_be_done_is_refused(tmp_path: Path, search: dict[str, Any], expected: str) -> None:
    found = problems(tmp_path, search)
    assert any(line.startswith(expected) for line in found), found


def test_value_is_judged_as_the_list_or_mapping_that_it_is(tmp_path: Path) -> None:
    wrong = without(space={"lr": {"log": [0, 1e-3]}, "batch": [8, 8]}, objective={"maximize": []})
    assert sorted(line.split(",")[0] for line in problems(tmp_path, wrong)) == [
        "search[0].objective.maximize: must not be empty",
        "search[0].space.batch: must name each once",
        "search[0].space.lr.log[0]: must be > 0.0",
    ]
