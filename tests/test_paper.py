"""The model study as sweep files: exactly its cells, its sharing, and in an instant."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from massive_sft.cli.plan import RELEASED, cells_csv
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.sweep.load import load_sweep

SWEEPS = Path(__file__).parent.parent / "sweeps"
MODELS = (
    "OLMo-7B-hf", "Meta-Llama-3-8B", "Mistral-7B-v0.1", "Gemma2-9B", "Qwen2.5-7B", "llama-3-chinese-8b",
    "Chinese-Mistral-7B-v0.1", "Yi-1.5-9B", "LLM-jp-3-7B", "Llama-3-Swallow-8B-v0.1", "Sarashina2-7B",
)  # fmt: skip
DATA = (
    "alpaca_cleaned", "lima", "ultrachat", "code_alpaca", "magicoder", "openmath", "math", "flan_knowledge",
    "flan_reasoning", "flan_comprehension",
)  # fmt: skip
Keys = set[tuple[str, ...]]


@pytest.fixture(autouse=True)
def no_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROOT", str(tmp_path))


def plan(name: str, *overlays: str) -> Plan:
    return make_plan(load_sweep(SWEEPS / f"{name}.yaml", [SWEEPS / f"{overlay}.yaml" for overlay in overlays]))


def keys(made: Plan) -> Keys:
    """The keys of the released table, from the CSV that `plan --cells` writes."""
    rows = list(csv.DictReader(io.StringIO(cells_csv(made))))
    found = {tuple(row[name] for name in RELEASED) for row in rows}
    assert len(found) == len(rows), "one key names one cell"
    return found


def released() -> Keys:
    """The keys of the published table, by the rule that makes them (model, data, lora, epoch, size, schedule)."""
    epochs = [str(epoch) for epoch in range(1, 11)]
    three = ("OLMo-7B-hf", "Qwen2.5-7B", "LLM-jp-3-7B")
    rows = {
        (model, data, lora, "10", "1000", "cosine")
        for model, data, lora in product(MODELS, DATA, ("false", "true"))
        if (model, data, lora) != ("Gemma2-9B", "magicoder", "false")
    }
    rows |= {
        (model, "all", lora, epoch, "10000", "cosine")
        for model, lora, epoch in product(MODELS, ("false", "true"), epochs)
        if (model, lora) != ("Gemma2-9B", "false")
    }
    rows |= {
        (model, data, "false", epoch, "1000", "constant")
        for model, data, epoch in product(three, DATA, epochs)
        if (data, epoch) != ("lima", "10")
    }
    rows |= {
        (model, data, "false", epoch, "20000", "constant")
        for model, data, epoch in product(three, DATA, epochs)
        if data != "lima"
    }
    rows |= {
        ("OLMo-7B-hf", f"w/o-{data}", lora, "10", "9000", "cosine") for data, lora in product(DATA, ("false", "true"))
    }
    return rows | {(model, "pretrain", "", "0", "0", "") for model in MODELS}


def test_sweep_of_the_paper_has_exactly_the_released_tables_rows() -> None:
    found = keys(plan("massive_sft"))
    assert found == released()
    assert len(found) == 1016 + 11


def test_sharing_of_the_paper_is_what_its_blocks_allow() -> None:
    saved = plan("massive_sft").sharing
    assert (saved.cells, saved.runs, saved.run_epochs, saved.cell_epochs) == (1016, 317, 3167, 6650)
    assert (saved.run_samples, saved.cell_samples) == (11_787_000, 46_860_000)


def test_overlay_of_the_whole_paper_has_its_1070_models() -> None:
    made = plan("massive_sft", "massive_sft_1070")
    assert made.sharing.cells == 1070
    assert len(made.base) == 12
    assert keys(made) > released()


def test_search_before_the_paper_has_its_96_conditions_on_six_datasets() -> None:
    made = plan("preliminary_search")
    runs = [run.trajectory.recipe for run in made.runs]
    settings = {
        (item.setting.method, item.setting.lr, item.setting.batch, item.setting.optimizer.weight_decay) for item in runs
    }
    assert len(settings) == 96
    assert len({item.mixture.name for item in runs}) == 6
    assert (made.sharing.runs, made.sharing.cells) == (576, 5760)


def test_sweep_of_one_gpu_asks_for_one_gpu() -> None:
    made = plan("one_gpu")
    assert {run.layout.gpus for run in made.runs} == {1}
    assert {"all", "w/o-lima", "lima"} <= {run.trajectory.recipe.mixture.name for run in made.runs}


def test_plan_of_the_paper_is_written_by_the_command_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "massive_sft",
        "plan",
        str(SWEEPS / "massive_sft.yaml"),
        "--cells",
        str(tmp_path / "out.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"ROOT": str(tmp_path)})
    assert "317 training runs, 3,167 epochs in all, give 1,016 trained cells" in done.stdout
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 1027
    counts = [
        line for line in done.stdout.splitlines() if line.startswith("  Meta-Llama-3-8B ") and " on H100, " in line
    ]
    full, lora = (line.partition(" training runs: ")[2] for line in counts)
    assert full.startswith("1: too small; 2: too small; 4: ") and full.index(", taken") < full.index("; 8: ")
    assert lora.index(", taken") < lora.index("; 2: ")
