"""``--where``: which cells it means, and how it refuses what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweep import small_sweep

from massive_sft.core.errors import InvalidInput
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.sweep.load import load_sweep

AWKWARD = "a 'b' \"c\"|d"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Data ``facts`` (96 samples), ``arith`` (all) and one of an awkward name; full and LoRA; epochs 1 and 2; base."""
    folder = tmp_path_factory.mktemp("where")
    mixtures = {
        "one": {"each": "facts", "samples": 96},
        "two": {"each": "arith"},
        AWKWARD: {"weights": {"facts": 1, "arith": 1}, "samples": 64},
    }
    blocks = [
        {"name": "A", "model": "all", "mixture": list(mixtures), "setting": ["full", "lora"]}
        | {"schedule": "constant", "horizon": 2, "snapshots": [1, 2]}
    ]
    return make_plan(load_sweep(small_sweep(folder, mixtures=mixtures, blocks=blocks)))


@pytest.mark.parametrize(
    ("text", "cells", "runs"),
    [
        (None, 13, 6),
        ("method=lora", 6, 3),
        ("method=lora and epoch!=1", 3, 3),
        ("  method = full|lora AND epoch=02 ", 6, 6),
        ("method!=full|lora", 1, 0),
        ("status=waiting", 13, 6),
        ("status=FAILED", 0, 0),
        ("horizon=none and seed=0", 12, 6),
        ("seed=none", 1, 0),
        ("size=all", 4, 2),
        ("size=96", 4, 2),
        ('variant=""', 13, 6),
        ("mixture='a ''b'' \"c\"|d' and method=full", 2, 1),
        ('data="a \'b\' ""c""|d"|facts and method=full', 4, 2),
    ],
)
def test_where_keeps_the_cells_that_meet_every_condition(plan: Plan, text: str, cells: int, runs: int) -> None:
    narrowed = select_cells(plan, parse_where(text))
    assert (len(narrowed.cells), len(narrowed.runs)) == (cells, runs)


def test_where_takes_the_beginning_of_an_id(plan: Plan) -> None:
    cell = plan.runs[0].cells[1]
    assert select_cells(plan, parse_where(f"cell={cell.cell.id[:12]}")).cells == (cell,)
    assert len(select_cells(plan, parse_where(f"trajectory={plan.runs[1].trajectory.id}")).cells) == 2


def test_narrowed_run_keeps_its_whole_trajectory(plan: Plan) -> None:
    run = select_cells(plan, parse_where("epoch=1 and method=full")).runs[0]
    assert [cell.cell.epoch for cell in run.cells] == [1]
    assert run.trajectory.snapshots == (1, 2)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["--where, character 1: must be KEY=VALUE"]),
        ("modle=x", ["--where: unknown key, got 'modle' (did you mean 'model'?); valid: model, mixture"]),
        ("lr=0.001", ["unknown key; a setting that varies is in variant: variant=lr=0.001, got 'lr'"]),
        ("model", ["--where, character 1: must be KEY=VALUE or KEY!=VALUE, got 'model'"]),
        ("model=", ['needs a value after model= (an empty one is ""), got \'\'']),
        ("model=a|", ["--where, character 9: needs a value"]),
        ("model=a or model=b", ["--where, character 9: must go on with `and`", "got 'or model=b'"]),
        ("model=a and", ["--where, character 12: must be KEY=VALUE"]),
        ("model=a and ", ["--where, character 12: must be KEY=VALUE"]),
        ('model="a', ["--where, character 7: needs a value"]),
        ("epoch=one and status=DONE", ["epoch: must be a whole number, got 'one'", "status: must be a status, got 'DONE'"]),
        ("seed=x", ["must be a whole number or none"]),
        ("cell=xyz", ["must be an id"]),
    ],
)  # fmt: skip
def test_malformed_where_is_refused_with_the_place_and_the_rule(text: str, messages: list[str]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_where(text)
    for message in messages:
        assert message in str(refusal.value)


def test_value_that_no_cell_has_is_refused_with_those_that_are_there(plan: Plan) -> None:
    with pytest.raises(InvalidInput) as refusal:
        select_cells(plan, parse_where("model=lama and epoch!=7 and cell=0000000000000000"))
    assert "--where: model: no cell of the sweep has it, got 'lama' (did you mean 'llama'?); valid: llama" in str(
        refusal.value
    )
    assert "epoch: no cell of the sweep has it, got '7'; valid: 1, 2, 0" in str(refusal.value)
    assert len(refusal.value.problems) == 3
    with pytest.raises(InvalidInput, match="mixture: is an entry whose mixtures have names of their own, got 'one'"):
        select_cells(plan, parse_where("mixture=one"))


def test_names_that_look_like_syntax_are_reached_by_quotes_alone(tmp_path: Path) -> None:
    assert parse_where("mixture='and'").conditions == parse_where("data=and").conditions
    assert parse_where("variant=lr=1e-05,lora.rank=8").conditions[0].values == ("lr=1e-05,lora.rank=8",)
