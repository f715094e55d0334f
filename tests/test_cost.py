"""What a sweep costs: formulas, measured figures, what is said where nothing is known, and budgets."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from test_cell import base_file, block
from test_plan import sweep_in
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.cli.views import plan_totals
from massive_sft.core.checksummed_json import seal
from massive_sft.core.errors import InvalidInput
from massive_sft.core.files import write_bytes, write_json
from massive_sft.cost.budget import balanced_order, fit_to_budget
from massive_sft.cost.calibrate import LEASE, calibrate
from massive_sft.cost.cost_table import (
    NAME,
    CostTable,
    ScoringCosts,
    TrainingCosts,
    read_cost_table,
    training_key,
    write_cost_table,
)
from massive_sft.cost.devices import find_gpu, gpus_here, this_machine
from massive_sft.cost.duration import Quantity, scoring_seconds, training_seconds
from massive_sft.cost.estimate import Cost, estimate, must_train, runs_to_train
from massive_sft.cost.formatting import budget_lines, cost_json, cost_lines, gpu_count_lines, gpu_counts_json
from massive_sft.cost.gpu_counts import compare_gpu_counts, with_gpu_counts
from massive_sft.cost.lack import NO_GPU_KIND
from massive_sft.cost.memory import capacity, find_remedy, judge, planned_layout, training_memory
from massive_sft.cost.padding import USUAL, computed_tokens
from massive_sft.cost.parallel import communication_seconds, slowest_over_mean
from massive_sft.cost.shapes import known_models, shape_of
from massive_sft.cost.workload import ScoringWorkload, ScoringWorkloads, TrainingWorkload, training_workload
from massive_sft.data.samples import padded_width
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.loss_curve import StepDone, to_line
from massive_sft.ledger.record import BenchmarkScores, Record, Status
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, make_plan, perplexity_key, token_key
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.planning.token_cache import TokenCache
from massive_sft.sweep.schema import Model, Setting
from massive_sft.sweep.semantics import MEASURE_SEMANTICS
from massive_sft.sweep.spec import Layout
from massive_sft.tiny import WEIGHTS
from massive_sft.training.layout import layout_problems
from massive_sft.training.packing import Limit, plan_step

FULL, LORA = Setting(method="full", lr=1e-5, batch=32), Setting(method="lora", lr=1e-4, batch=32)
LLAMA = known_models()["meta-llama/Meta-Llama-3-8B"]
NAMED = {"models": {"m1": {"hub": "Qwen/Qwen2.5-0.5B"}, "m2": {"hub": "EleutherAI/pythia-410m"}}}
H100 = {"resources": [{"gpus": 1, "gpu": "H100"}]}
TASKS = {"evaluation": {"tasks": [{"name": "gsm8k"}, {"name": "mmlu", "limit": 10}]}}


def on(gpus: int, zero: int, **more: Any) -> Layout:
    return Layout(workers=max(gpus, 1), gpus=gpus, zero=zero, **more)


# Shapes


@pytest.mark.parametrize(
    ("hub", "billions"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8.03),
        ("mistralai/Mistral-7B-v0.1", 7.24),
        ("google/gemma-2-9b", 9.24),
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-72B", 72.7),
        ("allenai/OLMo-7B-hf", 6.89),
        ("EleutherAI/pythia-410m", 0.405),
        ("HuggingFaceTB/SmolLM2-135M", 0.135),
        ("01-ai/Yi-1.5-9B", 8.83),
    ],
)
def test_known_models_have_their_published_sizes(hub: str, billions: float) -> None:
    shape = shape_of(Model(hub=hub))
    assert shape is not None
    assert shape.source == "known"
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(("name", "parameters"), [("tiny-llama", 468_096), ("tiny-neox", 521_280)])
def test_shape_of_a_local_model_is_counted_in_its_files(name: str, parameters: int, tmp_path: Path) -> None:
    shape = shape_of(Model(path=str(WEIGHTS / name)))
    assert shape is not None
    assert (shape.source, shape.layers, shape.hidden, shape.parameters) == ("config", 4, 96, parameters)
    (tmp_path / "config.json").write_bytes((WEIGHTS / name / "config.json").read_bytes())
    without_weights = shape_of(Model(path=str(tmp_path)))
    assert without_weights is not None
    assert without_weights.parameters == pytest.approx(parameters, rel=0.01)


def test_shape_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--thing" / "snapshots" / "abc"
    shutil.copytree(WEIGHTS / "tiny-llama", snapshot)
    (tmp_path / "models--org--thing" / "refs").mkdir()
    (tmp_path / "models--org--thing" / "refs" / "main").write_text("abc")
    for revision in ("main", "abc"):
        shape = shape_of(Model(hub="org/thing", revision=revision))
        assert shape is not None
        assert shape.parameters == 468_096


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("org/New-13B-Chat", 13e9),
        ("org/new_350m", 350e6),
        ("org/phi-2", None),
        ("org/Mix-8x7B", None),
        ("org/v0B", None),
    ],
)
def test_size_in_a_name_is_a_guess_and_no_size_is_none(name: str, parameters: float | None) -> None:
    shape = shape_of(Model(hub=name))
    assert (shape and shape.parameters) == parameters
    assert shape is None or shape.source == "name"


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"hidden_size": "wide"}'])
def test_broken_configuration_is_no_shape_and_no_error(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert shape_of(Model(path=str(tmp_path))) is None


# Memory


def test_states_of_full_tuning_follow_the_stage() -> None:
    weights = LLAMA.parameters

    def states(layout: Layout) -> Mapping[str, int]:
        return training_memory(LLAMA, FULL, layout, 2048).certain

    assert states(on(8, 1)) == {
        "weights": 2 * weights,
        "gradients": 4 * weights,
        "master copy": 4 * weights // 8,
        "moments": 8 * weights // 8,
    }
    assert states(on(8, 2))["gradients"] == 2 * weights // 8
    assert states(on(8, 3)) == {
        name: size * weights // 8 for name, size in zip(states(on(8, 3)), (2, 2, 4, 8), strict=True)
    }
    assert states(on(1, 1, offload="optimizer")) == {"weights": 2 * weights, "gradients": 4 * weights}
    assert states(on(1, 2, offload="optimizer")) == {"weights": 2 * weights}
    fp32 = FULL.model_copy(update={"precision": "fp32"})
    plain = training_memory(LLAMA, fp32, on(1, 0), 2048).certain
    assert plain == {"weights": 4 * weights, "gradients": 4 * weights, "moments": 8 * weights}


def test_lora_holds_gradients_and_state_of_its_adapter_alone() -> None:
    adapter = LLAMA.adapter(16)
    assert adapter == 41_943_040  # peft's count for rank 16 on all linear modules of Llama-3-8B
    states = training_memory(LLAMA, LORA, on(1, 1), 2048).certain
    assert states["weights"] == 2 * (LLAMA.parameters + adapter)
    assert states["moments"] == 8 * adapter


def test_checkpointing_saves_activations_and_longer_samples_take_more() -> None:
    plain = training_memory(LLAMA, FULL, on(8, 3), 2048).estimated
    lean = training_memory(LLAMA, FULL, on(8, 3, gradient_checkpointing=True), 2048).estimated
    short = training_memory(LLAMA, FULL, on(8, 3), 1024).estimated
    between = training_memory(LLAMA, FULL, on(8, 3, gradient_checkpointing="selective"), 2048).estimated
    assert lean["activations"] < between["activations"] < plain["activations"]
    assert lean["activations"] < plain["activations"] / 10
    assert short["activations"] == plain["activations"] / 2
    assert short["logits"] == plain["logits"] / 2 == 1024 * LLAMA.vocabulary * 12


# Trainings that ran: (model, setting, layout, tokens, GPU).
RAN = [
    ("meta-llama/Meta-Llama-3-8B", FULL, on(8, 3, gradient_checkpointing=True), 4096, "H100"),
    ("meta-llama/Meta-Llama-3-8B", LORA, on(1, 1, gradient_checkpointing=True), 4096, "H100"),
    ("meta-llama/Meta-Llama-3-8B", LORA, on(1, 1, gradient_checkpointing=True), 2048, "RTX-4090"),
    ("mistralai/Mistral-7B-v0.1", FULL, on(4, 3, gradient_checkpointing=True), 2048, "A100-80GB"),
    ("meta-llama/Llama-2-7b-hf", FULL, on(8, 3, offload="optimizer"), 2048, "A100-40GB"),
    ("Qwen/Qwen2.5-0.5B", FULL, on(1, 1), 1024, "RTX-4090"),
    ("Qwen/Qwen2.5-1.5B", FULL, on(1, 1, gradient_checkpointing=True), 1024, "A100-40GB"),
    ("EleutherAI/pythia-410m", FULL, on(1, 1), 1024, "T4"),
    ("google/gemma-2-9b", FULL, on(8, 3, gradient_checkpointing=True), 2048, "A100-80GB"),
    ("meta-llama/Llama-2-70b-hf", LORA, on(8, 3, gradient_checkpointing=True), 2048, "A100-80GB"),
]


@pytest.mark.parametrize(("hub", "setting", "layout", "longest", "kind"), RAN)
def test_training_that_ran_is_never_said_not_to_fit(
    hub: str, setting: Setting, layout: Layout, longest: int, kind: str
) -> None:
    shape, device = shape_of(Model(hub=hub)), find_gpu(kind)
    assert shape is not None
    assert device is not None
    assert judge(training_memory(shape, setting, layout, longest), device.memory) != "does not fit"


def test_does_not_fit_is_said_where_states_alone_are_too_much_and_never_of_a_guess() -> None:
    device = find_gpu("H100")
    assert device is not None
    memory = training_memory(LLAMA, FULL, on(1, 1), 2048)
    assert judge(memory, device.memory) == "does not fit"
    assert judge(memory, device.memory, certain=False) == "tight"
    assert judge(memory, memory.total) == "fits"
    assert judge(memory, memory.total - 1) == "tight"


LAYOUTS = [on(1, 0), on(1, 1), on(1, 1, micro_batch=16), on(2, 2), on(8, 1), on(8, 3, gradient_checkpointing=True)]
LAYOUTS += [on(2, 1, kernels="compiled"), on(2, 1, gradient_checkpointing="selective")]


@pytest.mark.parametrize(
    ("hub", "kind"),
    list(product(("Qwen/Qwen2.5-1.5B", "google/gemma-2-9b", "Qwen/Qwen2.5-72B"), ("T4", "A100-40GB", "H100"))),
)
def test_remedy_is_enough_by_the_same_formulas(hub: str, kind: str) -> None:
    device, shape = find_gpu(kind), known_models()[hub]
    assert device is not None
    for layout, setting in product(LAYOUTS, (FULL, LORA)):
        if judge(training_memory(shape, setting, layout, 2048), device.memory) == "fits":
            continue
        found = find_remedy(shape, setting, layout, 2048, device)
        if found is not None:
            assert training_memory(shape, setting, found.layout, found.longest).total <= capacity(device, found.layout)
            assert found.layout != layout or found.longest < 2048
            assert set(layout_problems(setting, found.layout)) <= set(layout_problems(setting, layout))
            changed = {name for name in Layout.model_fields if getattr(found.layout, name) != getattr(layout, name)}
            assert all(f"{name}: " in str(found) for name in changed - {"workers"}), (str(found), changed)


def test_cheapest_remedy_comes_first() -> None:
    device = find_gpu("H200")
    assert device is not None
    found = find_remedy(known_models()["Qwen/Qwen2.5-7B"], FULL, on(1, 1), 2048, device)
    assert str(found) == "set gradient_checkpointing: selective"


@pytest.mark.parametrize(
    ("layout", "longest", "kind", "way"),
    [
        (on(1, 1), 2048, "H100", False),
        (on(1, 1, micro_batch=10), 2048, "H100", "selective"),
        (on(1, 1, micro_batch=16), 2048, "H100", True),
        (on(2, 3, micro_batch=10), 2048, "H100", True),  # not selective: refused
        (on(1, 1, kernels="compiled", micro_batch=10), 2048, "H100", True),
        (on(1, 1), 4096, "T4", True),  # nothing fits
        (on(0, 1), 4096, "H100", False),
        (on(1, 1), 4096, None, False),
    ],
    ids=str,
)
def test_automatic_checkpointing_is_the_least_that_fits(
    layout: Layout, longest: int, kind: str | None, way: bool | str
) -> None:
    device = (find_gpu(kind) if kind else None) if layout.gpus else this_machine()
    auto = layout.model_copy(update={"gradient_checkpointing": "auto"})
    found = planned_layout(known_models()["Qwen/Qwen2.5-1.5B"], FULL, auto, longest, device)
    assert found == layout.model_copy(update={"gradient_checkpointing": way})


def test_plan_shows_the_checkpointing_that_it_counts_with(tmp_path: Path) -> None:
    rule = {"gpus": 1, "gpu": "H100", "micro_batch": 4}
    named = {"models": LLAMA_FULL["models"], "blocks": [block(setting=["lora"])]}
    auto, full = (
        make_plan(sweep_in(tmp_path, **named, resources=[{**rule, "gradient_checkpointing": way}]))
        for way in ("auto", True)
    )
    found = estimate(auto)
    assert found.fits[0].gradient_checkpointing == "selective"
    assert any(line.endswith("with gradient_checkpointing: selective") for line in cost_lines(found))
    assert estimate(full).fits[0].gradient_checkpointing is None
    assert [cell.cell.id for cell in auto.cells] == [cell.cell.id for cell in full.cells]


@pytest.mark.parametrize(
    ("called", "kind"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIE"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("A100", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("Tesla T4", "T4"),
        ("abacus", None),
    ],
)
def test_kind_of_gpu_is_known_by_what_its_driver_calls_it(called: str, kind: str | None) -> None:
    found = find_gpu(called)
    assert (found.name if found else None) == kind


# Amounts


def count_tokens(plan: Plan, tokens: int, samples: int = 100) -> None:
    for run in plan.runs:
        total = {
            "samples": samples,
            "tokens": tokens,
            "trainable_tokens": tokens // 2,
            "longest": 64,
            "text_bytes": 3 * tokens,
        }
        path = plan.root / "cache" / "tokens" / f"{token_key(run.trajectory.recipe)}.json"
        write_bytes(path, seal({"counts": {"total": total}}))


def test_tokens_are_counted_in_the_cache_else_guessed_else_unknown(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path))
    recipe = plan.runs[0].trajectory.recipe
    guessed = training_workload(TokenCache(plan.root), recipe)
    assert guessed is not None
    assert (guessed.samples, guessed.longest, guessed.sure) == (100, 2048, False)
    count_tokens(plan, 5000)
    assert training_workload(TokenCache(plan.root), recipe) == TrainingWorkload(100, 5000, 2500, 64, 3.0, sure=True)
    everything = make_plan(sweep_in(tmp_path, mixtures={"each": {"each": ["d1", "d2"]}}))
    assert training_workload(TokenCache(tmp_path), everything.runs[0].trajectory.recipe) is None


def test_local_rows_are_guessed_from_the_files_first_bytes(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "x" * 380, "output": "y" * 500})
    (tmp_path / "d.jsonl").write_text((row + "\n") * 300)
    datasets = {"d1": {"path": str(tmp_path / "d.jsonl"), "format": "alpaca"}, "d2": base_file()["datasets"]["d2"]}
    plan = make_plan(sweep_in(tmp_path, datasets=datasets, mixtures={"each": {"each": ["d1"]}}))
    workload = training_workload(TokenCache(plan.root), plan.runs[0].trajectory.recipe)
    assert workload is not None
    assert workload.samples == pytest.approx(300, abs=1)
    assert workload.length == pytest.approx(0.8 * (len(row) + 1) / 4, rel=0.01)
    (tmp_path / "d.jsonl").write_text("")
    assert training_workload(TokenCache(plan.root), plan.runs[0].trajectory.recipe) is None


def test_benchmarks_are_counted_in_the_request_cache_else_known_else_unknown(tmp_path: Path) -> None:
    tasks = [{"name": "mmlu", "shots": [0, 5], "limit": 10}, {"name": "gsm8k"}, {"name": "mine", "shots": 0}]
    tasks += [{"name": "hellaswag", "shots": 0}]
    cell = make_plan(sweep_in(tmp_path, evaluation={"tasks": tasks})).cells[0]
    zero, five, gsm8k, mine, endings = cell.requirements
    requests = ScoringWorkloads(tmp_path)
    assert requests.load(mine, 4.0) is None
    known = [requests.load(item, 4.0) for item in (zero, five, gsm8k)]
    assert known == [
        ScoringWorkload(57 * 10 * 120, 0, 0.0, 0, sure=False),
        ScoringWorkload(57 * 10 * (120 + 5 * 110), 0, 0.0, 0, sure=False),
        ScoringWorkload(1319 * (100 + 5 * 160), 1319, 900, 200, sure=False),  # its own five shots
    ]
    size = {"bytes": 4000, "answers": 10, "prompt_bytes": 800, "answer_tokens": 640}
    manifest = {"label": "mine-0shot", "limit": None, "provenance": {"size": size}}
    write_json(tmp_path / "cache" / "requests" / "a" / "manifest.json", manifest)
    write_json(tmp_path / "cache" / "requests" / "b" / "manifest.json", {"label": "older"})
    assert ScoringWorkloads(tmp_path).load(mine, 4.0) == ScoringWorkload(1200.0, 10, 20.0, 32.0, sure=True)
    tree = ScoringWorkloads(tmp_path, is_tree=True)
    assert tree.load(mine, 4.0) == ScoringWorkload(1200.0, 10, 20.0, 32.0, sure=True), "built before trees were counted"
    plain_load, tree_load = requests.load(endings, 4.0), tree.load(endings, 4.0)
    assert plain_load and tree_load and plain_load.tokens == 4 * tree_load.tokens, "a question once for its endings"
    size |= {"tree_bytes": 400, "prompt_tree_bytes": 200}
    write_json(tmp_path / "cache" / "requests" / "a" / "manifest.json", manifest)
    assert ScoringWorkloads(tmp_path, is_tree=True).load(mine, 4.0) == ScoringWorkload(150.0, 10, 20.0, 32.0, sure=True)


# Time


@pytest.mark.parametrize("layout", [Layout(), Layout(micro_batch=5), Layout(workers=2), Layout(packing=True)])
def test_computed_tokens_are_those_of_the_micro_batches(layout: Layout) -> None:
    lengths = np.random.default_rng(0).integers(20, 120, 640)
    limit = Limit(tokens=2048) if layout.micro_batch == "auto" else Limit(samples=layout.micro_batch)
    real = 0
    for start in range(0, 640, 32):
        batch = np.arange(start, start + 32)
        cuts = [
            cut for rank in plan_step(batch, lengths, layout.workers, limit, layout.packing) for cut in rank if len(cut)
        ]
        for cut in cuts:
            real += int(lengths[cut].sum()) if layout.packing else len(cut) * padded_width(int(lengths[cut].max()))
    widths = Counter(padded_width(int(length)) for length in lengths)
    tokens = int(lengths.sum())
    workload = TrainingWorkload(640, tokens, tokens, 119, None, True, tuple(widths.items()))
    assert computed_tokens(workload, FULL, layout) == pytest.approx(real, rel=0.1)


def test_padding_is_guessed_where_lengths_were_not_counted() -> None:
    assert computed_tokens(TrainingWorkload(10, 1000, 700, 128, None, sure=False), FULL, Layout()) == USUAL * 1000


def training_of(per_step: float, per_token: float, *means: int) -> TrainingCosts:
    """Sums over trainings of 20 steps of so many tokens each; 2 s of start, 0.5 s a snapshot."""
    row = TrainingCosts()
    for tokens in means:
        step = (float(tokens), per_step + per_token * tokens)
        whole = 21 * step[1] + 1.0
        row.add([step] * 21, 2, whole, whole + 2.0 - step[1])
    return row


def test_line_goes_through_trainings_and_is_proportional_where_they_are_alike() -> None:
    row = training_of(0.05, 1e-4, 400, 1000, 1600)
    assert row.line() == pytest.approx((0.05, 1e-4), rel=0.2)
    assert row.seconds_of(10, 10_000, 1) == pytest.approx(2.0 + 10 * 0.05 + 1.0 + 0.5, rel=0.01)
    assert training_of(0.05, 1e-4, 1000).line() == pytest.approx((0.0, 1.5e-4))
    alike = training_of(0.05, 1e-4, 1000, 1001)
    alike.ts -= 1e-3 * alike.ts  # by noise alone: a line through these would say that tokens save time
    assert alike.line()[1] == pytest.approx(alike.seconds / alike.tokens, rel=0.05)


def test_measured_training_is_scaled_to_other_data_and_epochs() -> None:
    device, layout = this_machine(), Layout()
    workload = TrainingWorkload(100, 4000, 2000, 64, 3.0, sure=True)
    row = training_of(0.05, 1e-4, 400, 1000, 1600)
    found = training_seconds(LLAMA, FULL, layout, workload, 3, 1, device, row, CostTable())
    assert found.value == pytest.approx(2.0 + 0.05 * 12 + 1e-4 * USUAL * 12000 + 0.5, rel=0.03)
    assert found.sure
    assert not training_seconds(LLAMA, FULL, layout, replace(workload, sure=False), 3, 1, device, row, CostTable()).sure


def test_public_training_speeds_are_met_within_a_factor_of_two() -> None:
    """On one H200, 7B full tuning at length 4096: 10,471 tokens/s; on one H100, 8B LoRA: 12,473 tokens/s."""
    workload = TrainingWorkload(10_000, 4096 * 10_000, 4096 * 10_000, 4096, None, sure=True)
    for hub, setting, kind, speed in [
        ("mistralai/Mistral-7B-v0.1", FULL, "H200", 10_471),
        ("meta-llama/Meta-Llama-3-8B", LORA, "H100", 12_473),
    ]:
        device = find_gpu(kind)
        assert device is not None
        found = training_seconds(known_models()[hub], setting, on(1, 1), workload, 1, 1, device, None, CostTable())
        assert not found.sure
        assert speed / 2 < workload.tokens / found.value < 2 * speed


def test_unmeasured_kind_takes_the_speed_of_what_was_measured_on_its_device() -> None:
    device = find_gpu("H100")
    assert device is not None
    workload = TrainingWorkload(100, 40_000, 40_000, 512, None, sure=True)
    row = TrainingCosts(steps=1, tokens=1.0, seconds=10.0, operations=1e13)
    table = CostTable(training={training_key("other", "full", "bf16", {}, "H100"): row})
    found = training_seconds(LLAMA, FULL, on(1, 1), workload, 1, 0, device, None, table)
    assert found.value > 6 * LLAMA.body * 40_000 / 1e12
    other = CostTable(training={training_key("other", "full", "bf16", {}, "A100-80GB"): row})
    assert training_seconds(LLAMA, FULL, on(1, 1), workload, 1, 0, device, None, other).value < found.value / 10


def test_scoring_is_measured_or_computed_or_unknown() -> None:
    device = find_gpu("H100")
    assert device is not None
    load = ScoringWorkload(1e6, 0, 0.0, 0.0, sure=True)
    measured = scoring_seconds(LLAMA, "bf16", load, device, ScoringCosts(count=2, seconds=8.0), CostTable())
    assert measured is not None
    assert (measured.value, measured.sure) == (4.0, True)
    computed = scoring_seconds(LLAMA, "bf16", load, device, None, CostTable())
    assert computed is not None
    assert computed.value == pytest.approx(2 * LLAMA.body * 1e6 / (0.35 * 989e12))
    assert scoring_seconds(LLAMA, "bf16", None, device, None, CostTable()) is None


def test_table_survives_the_disk_and_a_damaged_one_is_empty(tmp_path: Path) -> None:
    table = CostTable(
        {"a": training_of(0.1, 1e-3, 10, 20)}, {"b": {"load": ScoringCosts(1, 2.0, 3.0)}}, {"t": 1}, {"c": 2}
    )
    write_cost_table(Folder(tmp_path), table)
    assert read_cost_table(Folder(tmp_path)) == table
    for text in ("", "[]", '{"schema": 1, "training": {"a": {"steps": 1, "later": 2}}}', '{"schema": 3}'):
        (tmp_path / NAME).write_text(text)
        assert read_cost_table(Folder(tmp_path)) == CostTable()


# A whole plan


def cost_of(folder: Path, **changes: object) -> Cost:
    return estimate(make_plan(sweep_in(folder, **changes)))


def test_plan_without_a_kind_of_gpu_says_so_and_invents_no_hours(tmp_path: Path) -> None:
    cost = cost_of(tmp_path, **NAMED, **TASKS, resources=[{"gpus": 1}])
    assert cost.training.value == cost.evaluation.value == 0
    assert cost.unknown == {NO_GPU_KIND.rule: 3}
    told = "\n".join(cost_lines(cost))
    assert "training not known, evaluation not known" in told and "GPU-hours" not in told
    assert "unknown, 3 parts: no kind of GPU is named" in told
    assert cost.fits[0].verdict == "unknown"


def test_unknown_model_and_benchmark_are_named(tmp_path: Path) -> None:
    unknown = cost_of(tmp_path, **TASKS, **H100).unknown
    assert unknown == {"the size of m1 is not known until it is on the disk": 3}
    tasks = [{"name": "mine", "shots": 0}, {"name": "other", "shots": 5}]
    mine = cost_of(tmp_path, **NAMED, **H100, evaluation={"tasks": tasks}).unknown
    assert mine == {"the size of mine-0shot, other-5shot is not known until requests are built (check does)": 4}


def test_sum_that_lacks_a_part_is_not_known_rather_than_too_small(tmp_path: Path) -> None:
    tasks = {"tasks": [{"name": "gsm8k", "shots": 0}, {"name": "mine", "shots": 0}]}
    cost = cost_of(tmp_path, **NAMED, **H100, evaluation=tasks, budget={"price_per_gpu_hour": 2.0})
    head = cost_lines(cost)[0]
    assert head.startswith("cost: training ≈ ") and head.endswith("evaluation not known, one after another")
    figures = cost_json(cost)
    assert [figures[name]["complete"] for name in ("training", "evaluation", "gpu_seconds", "money")] == [
        True,
        False,
        False,
        False,
    ]
    assert figures["evaluation"]["value"] > 0  # of gsm8k, for programs
    known = cost_lines(cost_of(tmp_path, **NAMED, **H100, evaluation={"tasks": tasks["tasks"][:1]}))[0]
    assert "evaluation ≈ " in known and "GPU-hours" in known


def test_gpu_hours_and_money_come_from_layouts_and_the_price(tmp_path: Path) -> None:
    one = cost_of(tmp_path, **NAMED, **TASKS, **H100, budget={"price_per_gpu_hour": 2.0})
    assert one.gpu_seconds is not None
    assert one.gpu_seconds.value == pytest.approx(one.training.value + one.evaluation.value)
    assert one.money is not None
    assert one.money.value == pytest.approx(one.gpu_seconds.value * 2 / 3600)
    assert not one.money.sure
    few = replace(one, gpu_seconds=Quantity(720.0, True))
    assert "; 0.2 GPU-hours; money 0.4 at 2 a GPU-hour" in cost_lines(few)[0]
    eight = cost_of(tmp_path, **NAMED, **TASKS, resources=[{"gpus": 8, "gpu": "H100", "zero": 3}])
    assert eight.gpu_seconds is not None
    assert eight.gpu_seconds.value == pytest.approx(8 * eight.training.value + eight.evaluation.value)
    assert eight.money is None
    assert cost_of(tmp_path, **NAMED, **TASKS).gpu_seconds is None


def test_scoring_is_priced_on_the_kind_of_gpu_that_a_rule_names_for_it(tmp_path: Path) -> None:
    """Wherever that rule stands: so a run asks the cluster for it."""
    scored = {"when": {"phase": "evaluate"}, "gpu": "A100-80GB"}
    alone = cost_of(tmp_path, **NAMED, **TASKS, resources=[scored | {"gpus_per_replica": 1}]).evaluation
    for rules in ([*H100["resources"], scored], [scored, *H100["resources"]]):
        assert cost_of(tmp_path, **NAMED, **TASKS, resources=rules).evaluation == alone
    assert cost_of(tmp_path, **NAMED, **TASKS, **H100).evaluation.value < alone.value


LLAMA_FULL = {
    "models": {"m1": {"hub": "meta-llama/Meta-Llama-3-8B"}},
    "blocks": [block(setting=["full", "lora"])],
}


def chosen(folder: Path, **changes: Any) -> Plan:
    return with_gpu_counts(make_plan(sweep_in(folder, **changes)))


def test_auto_takes_the_fewest_gpus_that_fit_and_plan_shows_every_number(tmp_path: Path) -> None:
    auto = chosen(tmp_path, **LLAMA_FULL, resources=[{"gpus": "auto", "gpu": "h100", "gradient_checkpointing": True}])
    named = make_plan(sweep_in(tmp_path, **LLAMA_FULL, **H100))
    assert auto.undecided == () and [run.gpu for run in auto.runs] == ["H100", "H100"]
    assert [(run.layout.gpus, run.layout.workers, run.layout.stage) for run in auto.runs] == [(4, 4, 1), (1, 1, None)]
    assert [cell.cell.id for cell in auto.cells] == [cell.cell.id for cell in named.cells]  # a layout is in no id
    full, lora = gpu_counts_json(compare_gpu_counts(auto, auto.runs))
    assert [(row["gpus"], row["fits"]) for row in full["counts"]] == [(1, False), (2, False), (4, True), (8, True)]
    for row in (full, lora):
        fitting = [count for count in row["counts"] if count["fits"]]
        assert row["taken"] == min(fitting, key=lambda count: count["gpu_seconds"])["gpus"] == fitting[0]["gpus"]
        assert sorted((count["mfu"] for count in fitting), reverse=True) == [count["mfu"] for count in fitting]
    lines = gpu_count_lines(compare_gpu_counts(auto, auto.runs))
    assert lines[1].startswith("  m1 full on H100: 1: too small; 2: too small; 4: ") and ", taken; 8: " in lines[1]
    eight = [{"gpus": 8, "gpu": "H100", "zero": 3}]  # what a file names is compared too
    assert ", taken; 2: " in gpu_count_lines(compare_gpu_counts(named, named.runs))[2]
    many = make_plan(sweep_in(tmp_path, **LLAMA_FULL, resources=eight))
    assert gpu_count_lines(compare_gpu_counts(many, many.runs))[2].endswith(", taken")


@pytest.mark.parametrize(
    ("rule", "place", "told"),
    [
        ({"gpu": "H1000"}, "gpu", "without a data sheet here, so auto cannot count for it: say how many gpus"),
        (
            {"gpu": "A30", "gradient_checkpointing": True},
            "gpus",
            "set offload: optimizer, or take a setting of method ",
        ),
    ],
)
def test_auto_that_finds_no_number_of_gpus_says_what_would_help(
    rule: dict[str, Any], place: str, told: str, tmp_path: Path
) -> None:
    plan = chosen(tmp_path, **LLAMA_FULL, resources=[{"gpus": "auto", **rule}])
    first = plan.undecided[0]
    assert first.place.endswith(f"resources[0].{place}") and told in first.rule
    assert plan.runs[0].layout.gpus == 1
    if place == "gpus":
        assert "auto finds m1 full too large for 1, 2, 4, 8 × A30 (≈ " in first.rule
        assert "lora, which fits on 1, or name a kind of gpu with more memory" in first.rule
    path = sweep_file(tmp_path, **LLAMA_FULL, resources=[{"gpus": "auto", **rule}])
    assert f"resources[0].{place}: {first.rule}"[:60] in CliRunner().invoke(app, ["plan", path]).stdout


@pytest.mark.skipif(bool(gpus_here()), reason="a GPU of this machine tells the kind")
def test_auto_without_a_known_card_asks_for_its_name(tmp_path: Path) -> None:
    (problem,) = chosen(tmp_path, **LLAMA_FULL, resources=[{"gpus": "auto"}]).undecided
    assert problem.place.endswith("resources[0].gpus") and "name it (gpu: H100, " in problem.rule


def test_auto_needs_the_size_of_the_model(tmp_path: Path) -> None:
    (problem,) = chosen(tmp_path, resources=[{"gpus": "auto", "gpu": "H100"}]).undecided
    assert "the size of m1, which is not known until it is on the disk: fetch it, or say how many" in problem.rule


def test_driver_tells_the_gpus_of_a_machine(tmp_path: Path) -> None:
    for bus in ("0000:17:00.0", "0000:2a:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t 18\n")
    assert gpus_here(tmp_path) == ("NVIDIA H100 80GB HBM3",) * 2
    assert gpus_here(tmp_path / "none") == ()


def test_several_ranks_pay_for_unequal_shares_and_for_what_they_send() -> None:
    widths = ((3200, 1), (640, 2), (320, 5))
    workload = TrainingWorkload(8, 6080.0, 6080.0, 3200, None, sure=True, widths=widths)
    assert slowest_over_mean(workload, FULL, on(1, 1)) == 1
    assert slowest_over_mean(workload, FULL, on(2, 1)) == pytest.approx(3200 / 3040)
    assert slowest_over_mean(workload, FULL, on(4, 1)) == pytest.approx(3200 / 1520)
    uncounted = replace(workload, samples=9, widths=())
    shares = {ranks: slowest_over_mean(uncounted, FULL, on(ranks, 1)) for ranks in (1, 2, 4, 16)}
    assert shares == pytest.approx({1: 1, 2: 10 / 9, 4: 12 / 9, 16: 16 / 9})
    huge = FULL.model_copy(update={"batch": 10**12})
    assert slowest_over_mean(replace(uncounted, samples=10**8), huge, on(8, 1)) == 1, "in no time"
    device = find_gpu("H100")
    assert device is not None
    seconds = [communication_seconds(LLAMA, FULL, on(8, zero), workload, 1, device) for zero in (1, 3)]
    # Eight bytes of gradients and two of weights a weight; at stage 3 four and twice two: seven eighths of each.
    moved = [10 * LLAMA.parameters, 8 * LLAMA.parameters]
    assert seconds == pytest.approx([0.875 * sent / (0.7 * 450e9) for sent in moved])
    assert communication_seconds(LLAMA, FULL, on(1, 1), workload, 1, device) == 0


def test_perplexity_of_a_mixture_is_paid_once_and_not_again_when_cached(tmp_path: Path) -> None:
    changes = NAMED | H100 | {"blocks": [block(setting=["full", "lora"], snapshots="1..3")]}
    without = cost_of(tmp_path, **changes).evaluation.value
    sweep = sweep_in(tmp_path, **changes, measures=["perplexity"])
    once = estimate(make_plan(sweep)).evaluation.value
    keys = {perplexity_key(run.trajectory.recipe) for run in make_plan(sweep).runs}
    assert len(keys) == 1
    write_json(make_plan(sweep).root / "cache" / "perplexity" / keys.pop() / "perplexity.json", {})
    cached = estimate(make_plan(sweep)).evaluation.value
    assert without < cached < once


def test_disk_follows_the_retention_policy(tmp_path: Path) -> None:
    size = 2 * known_models()["Qwen/Qwen2.5-0.5B"].parameters

    def of(keep: str, waiting: str = "2TB") -> tuple[int, int, int]:
        storage = {"root": str(tmp_path / "ledger"), "keep_snapshots": {"full": keep}, "max_waiting": waiting}
        found = cost_of(tmp_path, **NAMED, storage=storage, blocks=[block(mixture="each", snapshots="1..3")]).disk
        assert found is not None
        return found.kept // size, found.waiting // size, found.resume // size

    assert of("none") == (0, 6, 7)
    assert of("last") == (2, 4, 7)
    assert of("all") == (6, 0, 7)
    assert of("none", "1GB") == (0, 3, 7)  # the snapshots of one run wait in any case


def test_memory_of_scoring_is_told_where_base_rows_alone_are_left(tmp_path: Path) -> None:
    models = {"m1": {"hub": "Qwen/Qwen2.5-72B"}, "m2": {"hub": "Qwen/Qwen2.5-0.5B"}}
    plan = make_plan(sweep_in(tmp_path, models=models, **H100))
    (fit,) = estimate(select_cells(plan, parse_where("method=none"))).fits
    assert (fit.what, fit.where, fit.verdict) == ("scoring m1", "1 × H100", "does not fit")


def test_cost_is_json_and_lines_name_the_remedy(tmp_path: Path) -> None:
    models = {"m1": {"hub": "meta-llama/Meta-Llama-3-8B"}, "m2": {"hub": "org/m2"}}
    cost = cost_of(tmp_path, models=models, **H100)
    assert json.loads(json.dumps(cost_json(cost)))["memory"][0]["verdict"] == "does not fit"
    assert "does not fit: m1 full on 1 × H100 needs ≈ 167 GB of 85.5 GB: set zero: 2, offload: optimizer" in "\n".join(
        cost_lines(cost)
    )


def test_measured_peak_replaces_the_formula_and_always_fits(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, **NAMED))
    run, shape = plan.runs[0], shape_of(plan.runs[0].trajectory.recipe.model)
    assert shape is not None
    layout = run.layout.model_dump(mode="json")
    row = TrainingCosts(
        peak=3_000_000_000, peak_formula=training_memory(shape, FULL, run.layout, 2048, smallest=False).total
    )
    write_cost_table(plan.storage, CostTable({training_key(shape.key, "full", "bf16", layout, "cpu"): row}))
    fit = estimate(plan).fits[0]
    assert (fit.needed, fit.verdict, fit.measured) == (3_000_000_000, "fits", True)


# Budgets


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (4, 6), (6, 4), (5, 5), (11, 10), (12, 18)])
def test_wherever_a_balanced_order_stops_counts_differ_by_at_most_one(rows: int, columns: int) -> None:
    models, datasets = [f"m{i}" for i in range(rows)], [f"d{i}" for i in range(columns)]
    order = list(balanced_order(models, datasets, seed=3))
    assert set(order) == set(product(models, datasets))
    assert len(order) == rows * columns
    by_model, by_data = Counter(dict.fromkeys(models, 0)), Counter(dict.fromkeys(datasets, 0))
    for model, data in order:
        by_model[model] += 1
        by_data[data] += 1
        assert max(by_model.values()) - min(by_model.values()) <= 1
        assert max(by_data.values()) - min(by_data.values()) <= 1


def test_balanced_order_hangs_on_the_seed_and_not_on_the_files_order() -> None:
    one = list(balanced_order(["a", "b", "c"], ["x", "y"], 1))
    assert one == list(balanced_order(["c", "a", "b"], ["y", "x"], 1))
    assert any(one != list(balanced_order(["a", "b", "c"], ["x", "y"], seed)) for seed in range(2, 6))


def grid(folder: Path) -> Plan:
    blocks = [block(model="all", mixture="each", setting=["full", "lora"]), block(name="B", mixture="all")]
    return make_plan(sweep_in(folder, **NAMED, **TASKS, **H100, blocks=blocks))


def test_budget_takes_base_rows_then_whole_pairs_and_lists_the_rest(tmp_path: Path) -> None:
    plan = grid(tmp_path)
    whole = fit_to_budget(plan, 1e6)
    assert (whole.left_out, len(whole.plan.runs)) == ((), 9)
    half = fit_to_budget(plan, whole.taken.value / 2)
    assert half.taken.value <= half.hours
    assert len(half.plan.base) == 2
    assert len(half.plan.runs) + half.runs_left_out == 9
    pairs = Counter((run.trajectory.recipe.model_name, run.trajectory.recipe.mixture.name) for run in half.plan.runs)
    assert set(pairs.values()) == {2}  # LoRA and full tuning stay together
    assert "m1 × all (block B): 1 run" in half.left_out
    assert len(budget_lines(half)) == 1 + len(half.left_out)


def test_budget_too_small_for_anything_lists_the_base_rows_too(tmp_path: Path) -> None:
    none = fit_to_budget(grid(tmp_path), 1e-6)
    assert (none.plan.runs, none.plan.base, none.runs_left_out) == ((), (), 9)
    assert {"m1 (base)", "m2 (base)"} < set(none.left_out)


def test_budget_of_what_cannot_be_estimated_is_refused(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, **NAMED, resources=[{"gpus": 1}]))
    with pytest.raises(InvalidInput, match="cannot be kept without an estimate: no kind of GPU is named"):
        fit_to_budget(plan, 10.0)


def test_budget_without_gpus_counts_hours_of_the_machine(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, **NAMED, **TASKS))
    cost = estimate(plan)
    assert fit_to_budget(plan, 1e6).taken.value == pytest.approx((cost.training.value + cost.evaluation.value) / 3600)


# Learning from records

SECONDS = {"load": 2.0, "perplexity": 3.0, "layer_change": 1.0, "other": 0.5}


def record_of(plan: Plan, cell: CellPlan, run: RunPlan | None, ledger: Ledger, **training: Any) -> None:
    """Write a cell's record as a run on a CPU leaves it: 0.1 s a step and 1 ms a token, 5 s of start."""
    files, facts = {}, {}
    if run is not None:
        steps = [(index, 900 + 200 * (index % 3)) for index in range(4 * run.trajectory.epochs)]
        name = f"trajectories/{run.trajectory.id}/training/attempt-1/losses.jsonl"
        lines = [StepDone(index + 1, 1, 2.0, 1e-5, 1.0, tokens, 300, 0.1 + 1e-3 * tokens) for index, tokens in steps]
        write_bytes(ledger.root / name, "".join(map(to_line, lines)).encode())
        files[name] = "0" * 64
        whole = sum(line.seconds for line in lines) + 2.0 * len(run.trajectory.snapshots)
        facts = {"run_seconds": whole, "wall_seconds": whole + 5.0, "peak_bytes": 10**9, "device": "cpu", "resumed": []}
        facts |= {"layout": run.layout.model_dump(mode="json")}
    asked = {item.id: 10.0 for item in cell.requirements if item.task}
    measures = {} if run is None else {name: {"schema": MEASURE_SEMANTICS[name]} for name in plan.sweep.file.measures}
    seconds = {name: took for name, took in SECONDS.items() if name not in MEASURES or name in measures}
    scores = {name: BenchmarkScores(benchmark=name, asked=name, shots=0, tasks={}) for name in asked}
    content = {
        "cell": cell.cell.id,
        "trajectory": run.trajectory.id if run else None,
        "coordinates": cell.cell.coordinates._asdict(),
        "status": Status.COMPLETE,
        "attempt": 1,
        "scores": scores,
        "measures": measures,
        "training": facts | training,
        "cost": {"device": "cpu", "seconds": seconds | asked},
        "provenance": {},
        "created": "2026-01-31T12:00:00+00:00",
        "finished": "2026-01-31T12:00:00+00:00",
        "files": files,
    }
    ledger.write_record(Record(**content))  # type: ignore[arg-type]


MEASURES = ("perplexity", "layer_change")
LEARNED: dict[str, Any] = {
    **NAMED,
    **TASKS,
    "measures": [*MEASURES, "token_length"],
    "blocks": [block(model="m1", mixture="each", snapshots="1..2", horizon=2)],
}


def learned(folder: Path, **training: Any) -> Plan:
    """A plan of two runs of one shape, of which the first is done and learned from."""
    sweep = sweep_in(folder, **LEARNED)
    plan = make_plan(sweep)
    ledger = Ledger.open(plan.root)
    count_tokens(plan, 4000)
    for cell in plan.runs[0].cells:
        record_of(plan, cell, plan.runs[0], ledger, **training)
    assert calibrate(plan, ledger) == 2
    assert calibrate(plan, ledger) == 0
    return make_plan(sweep)


def test_one_measured_training_prices_the_others_of_its_shape(tmp_path: Path) -> None:
    cost = estimate(learned(tmp_path))
    assert (cost.runs, cost.measured) == (1, 1)
    assert cost.fits[0].runs == 1  # of what is left, as everything here
    # The first step, of 1 s, is part of the start; one training says what a token takes, and not what a step does.
    steps = [900 + 200 * (index % 3) for index in range(1, 8)]
    token = sum(0.1 + 1e-3 * tokens for tokens in steps) / sum(steps)
    assert cost.training.value == pytest.approx(5.0 + 1.0 + 8000 * token + 2 * 2.0)
    assert cost.training.sure
    tasks = 2 * 10.0
    cells = 2 * (2.0 + 1.0 + 0.5 + tasks) + 3.0
    base = 2.0 + 0.5 + tasks  # by the fully tuned model's figures
    assert cost.evaluation.value == pytest.approx(cells + base)
    assert cost.evaluation.sure
    assert "≈" not in cost_lines(cost)[0]


def test_each_record_is_learned_from_once(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    ledger = Ledger.open(plan.root)
    for cell, trainings in zip(plan.runs[1].cells, (1, 2), strict=True):  # the last snapshot tells of the whole
        record_of(plan, cell, plan.runs[1], ledger)
        assert calibrate(plan, ledger) == 1
        assert [row.trainings for row in read_cost_table(plan.storage).training.values()] == [trainings]
    assert [rows["other"].count for rows in read_cost_table(plan.storage).scoring.values()] == [4]


def test_memory_is_what_was_measured_for_the_shape(tmp_path: Path) -> None:
    fit = estimate(learned(tmp_path)).fits[0]
    assert (fit.measured, fit.needed, fit.verdict) == (True, 10**9, "fits")


def test_resumed_training_tells_its_steps_and_not_its_start(tmp_path: Path) -> None:
    plan = learned(tmp_path, resumed=[{"attempt": 1, "step": 2}])
    row = next(iter(read_cost_table(plan.storage).training.values()))
    assert (row.steps, row.starts, row.snapshots) == (7, 0, 0)


def test_training_under_automatic_checkpointing_is_learned_from_by_what_it_took(tmp_path: Path) -> None:
    rows = []
    for asked, took in (("auto", True), (True, True), ("auto", False)):
        layout = Layout(gradient_checkpointing=asked).model_dump(mode="json")
        folder = tmp_path / f"{asked}-{took}"
        folder.mkdir()
        plan = learned(folder, layout=layout, gradient_checkpointing=took)
        rows += read_cost_table(plan.storage).training.values()
    assert rows[0] == rows[1] != rows[2]
    assert rows[2].operations < rows[0].operations and rows[2].peak_formula > rows[0].peak_formula


@pytest.mark.parametrize("broken", [{"device": None}, {"layout": None}, {"wall_seconds": None}])
def test_record_that_measured_nothing_teaches_no_training(broken: dict[str, Any], tmp_path: Path) -> None:
    plan = learned(tmp_path, **broken)
    assert not read_cost_table(plan.storage).training
    assert read_cost_table(plan.storage).scoring


def test_table_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    before = read_cost_table(plan.storage)
    (plan.root / NAME).unlink()
    assert calibrate(plan, Ledger.open(plan.root)) == 2
    assert read_cost_table(plan.storage) == before


def test_estimate_counts_what_a_killed_run_measured_and_writes_nothing(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    before = estimate(plan)
    (plan.root / NAME).unlink()  # as a run leaves it that is killed before it learns
    assert estimate(plan) == before
    assert before.measured == 1 and not (plan.root / NAME).exists()


def test_nothing_is_learned_while_another_run_learns(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    (plan.root / NAME).unlink()
    lease = Lease.acquire(Folder(plan.root / LEASE), "another")
    assert lease is not None
    with lease:
        assert calibrate(plan, Ledger.open(plan.root)) == 0
    assert read_cost_table(plan.storage) == CostTable()


def test_finished_plan_costs_nothing_and_a_budget_still_counts_it(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    ledger = Ledger.open(plan.root)
    for cell in plan.runs[1].cells:
        record_of(plan, cell, plan.runs[1], ledger)
    record_of(plan, plan.base[0], None, ledger)
    done = make_plan(plan.sweep)
    assert cost_lines(estimate(done)) == []
    assert fit_to_budget(done, 1.0).taken.value == pytest.approx(fit_to_budget(plan, 1.0).taken.value)


def test_removed_snapshots_are_priced_as_retrainings_beside_what_is_left(tmp_path: Path) -> None:
    plan = learned(tmp_path)
    gone = replace(
        plan.runs[0],
        needs_retraining=True,
        cells=tuple(replace(cell, unmet=cell.requirements) for cell in plan.runs[0].cells),
    )
    cost, before = estimate(replace(plan, runs=(gone, plan.runs[1]))), estimate(plan)
    assert (cost.retrainings, cost.training) == (1, before.training)
    assert cost.retraining.value > before.training.value
    assert "run --retrain`: 1 training again" in cost_lines(cost)[-1]
    first = replace(gone, cells=(gone.cells[0], plan.runs[0].cells[1]))
    of = {run.trajectory.id: run.trajectory.epochs for run in runs_to_train(replace(plan, runs=(first,)), retrain=True)}
    assert of == {first.trajectory.id: 1}, "no further than what is needed"
    for retrain, then in ((False, "their cells stay PARTIAL unless you run with --retrain"), (True, "trained again")):
        totals = plan_totals(replace(plan, runs=(gone, plan.runs[1])), retrain)
        assert any(line.plain.endswith(f"were removed: {then}") for line in totals)


def test_part_of_a_training_s_cells_is_told_to_need_the_whole(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, **NAMED, blocks=[block(schedule="constant", snapshots="1..3")]))
    first = select_cells(plan, parse_where("epoch=1 and method!=none"))
    told = "1 training run, 3 epochs in all, gives 3 trained cells, 1 of them chosen: a training is done whole"
    assert told in [line.plain for line in plan_totals(first)]
    assert not any("chosen" in line.plain for line in plan_totals(plan))


def test_sharing_saves_what_a_run_for_each_cell_would_train_again(tmp_path: Path) -> None:
    """Snapshots at 1, 2 and 3: one run of three epochs in place of six."""
    plan = make_plan(sweep_in(tmp_path, **NAMED, blocks=[block(schedule="constant", snapshots="1..3")]))
    cost = estimate(plan)
    assert cost.saved.value == pytest.approx(cost.training.value)
    alone = estimate(make_plan(sweep_in(tmp_path, **NAMED, blocks=[block(schedule="constant", snapshots=[3])])))
    assert alone.saved.value == 0


def test_training_that_lacks_an_epoch_is_still_to_do(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, **NAMED, blocks=[block(schedule="constant", snapshots="1..2")]))
    run = plan.runs[0]
    outcome = plan.root / "trajectories" / run.trajectory.id / "training" / "attempt-1" / "training.json"
    assert must_train(plan, run)
    write_json(outcome, {"epochs": {"1": {}}})
    assert must_train(plan, run)
    before = sum(fit.runs for fit in estimate(plan).fits)
    write_json(outcome, {"epochs": {"1": {}, "2": {}}})
    assert not must_train(plan, run)
    assert sum(fit.runs for fit in estimate(plan).fits) == before - 1  # nor is its memory of what is left


# A real sweep, as it was measured: see benchmarks/estimates.py

SWEEP = json.loads((Path(__file__).parent / "data" / "measured_sweep.json").read_text())["trainings"]
KINDS = sorted({(run["model"], run["method"]) for run in SWEEP})
SEEN = "facts"  # the trainings on it are measured, the others predicted


def of_kind(kind: tuple[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The measured training of a kind, and the others."""
    alike = [run for run in SWEEP if (run["model"], run["method"]) == kind]
    return next(run for run in alike if run["data"] == SEEN), [run for run in alike if run["data"] != SEEN]


def computed(run: dict[str, Any]) -> float:
    """Tokens of an epoch with their padding."""
    widths = tuple((width, count) for width, count in run["widths"])
    workload = TrainingWorkload(run["samples"], run["tokens"], run["tokens"], 128, None, True, widths)
    return computed_tokens(workload, FULL.model_copy(update={"batch": run["batch"]}), Layout())


def predicted_training(seen: dict[str, Any], run: dict[str, Any]) -> float:
    row, padding = TrainingCosts(), computed(seen) / seen["tokens"]
    steps = [(padding * tokens, seconds) for tokens, seconds in seen["steps"]]
    row.add(steps, seen["snapshots"], seen["run_seconds"], seen["wall_seconds"])
    count = -(-run["samples"] // run["batch"]) * run["epochs"]
    return row.seconds_of(count, computed(run) * run["epochs"], run["snapshots"])


def predicted_cells(seen: dict[str, Any], run: dict[str, Any]) -> float:
    names = {name for cell in seen["cells"] for name in cell} - {"perplexity"}
    means = [[cell[name] for cell in seen["cells"] if name in cell] for name in names]
    return len(run["cells"]) * sum(sum(values) / len(values) for values in means)


def test_real_sweep_took_what_one_training_of_each_kind_foretold_within_30_percent() -> None:
    said, took = {"training": 0.0, "cells": 0.0}, {"training": 0.0, "cells": 0.0}
    for kind in KINDS:
        seen, others = of_kind(kind)
        for run in others:
            said["training"] += predicted_training(seen, run)
            took["training"] += run["wall_seconds"]
            said["cells"] += predicted_cells(seen, run)
            took["cells"] += sum(sum(cell.values()) - cell.get("perplexity", 0.0) for cell in run["cells"])
    for name in said:
        assert said[name] == pytest.approx(took[name], rel=0.3), name


def test_real_sweep_held_the_memory_of_one_training_of_each_kind_within_20_percent() -> None:
    for kind in KINDS:
        seen, others = of_kind(kind)
        for run in others:
            assert seen["peak_bytes"] == pytest.approx(run["peak_bytes"], rel=0.2)


def test_real_sweep_fitted_by_the_formulas_before_anything_was_measured() -> None:
    for run in SWEEP:
        shape = shape_of(Model(path=str(WEIGHTS / run["model"])))
        assert shape is not None
        setting = Setting(method=run["method"], lr=1e-3, batch=32, precision="fp32")
        memory = training_memory(shape, setting, Layout(), 128, smallest=False)
        assert judge(memory, run["peak_bytes"]) != "does not fit"
        assert memory.total == pytest.approx(run["peak_bytes"], rel=0.2)


def sweep_file(folder: Path, **changes: object) -> str:
    file = base_file() | NAMED | TASKS | {"storage": {"root": str(folder / "ledger")}} | changes
    with (folder / "sweep.yaml").open("w") as text:
        YAML(typ="safe").dump(file, text)
    return str(folder / "sweep.yaml")


def test_plan_of_a_budget_prints_what_it_takes_and_leaves_out(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, **H100, blocks=[block(model="all", mixture="each")])
    done = CliRunner().invoke(app, ["plan", path, "--budget-gpu-hours", "0.6", "--json"])
    content = json.loads(done.stdout)
    assert len(content["runs"]) == content["budget"]["runs"] < 4
    assert len(content["budget"]["left_out"]) == 4 - content["budget"]["runs"]
    assert content["cost"]["gpu_seconds"]["value"] / 3600 <= 0.6
    told = CliRunner().invoke(app, ["plan", path, "--budget-gpu-hours", "0.6"]).stdout
    assert "GPU-hours" in told
    assert f"left out: {len(content['budget']['left_out'])} training run" in told


def test_budget_that_is_no_number_or_pays_for_nothing_is_said(tmp_path: Path) -> None:
    sources = NAMED | {"datasets": base_file()["datasets"]}
    pinned = {
        part: {name: {**source, "revision": "0" * 40} for name, source in named.items()}
        for part, named in sources.items()
    }
    path = sweep_file(tmp_path, **H100, **pinned)
    for verb in ("plan", "run"):
        done = CliRunner().invoke(app, [verb, path, "--budget-gpu-hours", "inf"])
        assert "--budget-gpu-hours: must be a finite number, got inf" in str(done.exception)
    done = CliRunner().invoke(app, ["run", path, "--budget-gpu-hours", "0"])
    assert (done.exit_code, "nothing to do: the budget pays for no cell" in done.stdout) == (0, True)


def test_plan_of_a_file_whose_budget_cannot_be_kept_is_shown_with_a_warning(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, resources=[{"gpus": 1}], budget={"gpu_hours": 5})
    done = CliRunner().invoke(app, ["plan", path])
    assert done.exit_code == 0
    assert "budget.gpu_hours: cannot be kept without an estimate: no kind of GPU is named" in done.output
    assert "1 training run," in done.output
