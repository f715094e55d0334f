"""LoRA trainings of one base that take their steps together are what each is alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from resuming import Told, begin
from safetensors.torch import load_file
from small_memory import SmallMemory
from small_models import SIZES
from tiny_training import make_base, make_samples, make_spec
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    Starcoder2Config,
)

from massive_sft.core.errors import Interrupted, Unsupported
from massive_sft.core.turn_taking import Turn, take_turns
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.adapter_group import AdapterGroup, GroupMember, JointLayer
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.events import Resumed, StepDone
from massive_sft.training.layout import layout_problems
from massive_sft.training.loop import train_trajectory
from massive_sft.training.lora import drops_out
from massive_sft.training.summary import TrainingSummary

# Larger than the gradients that rounding decides, so that AdamW does not blow those up to a whole learning rate.
SMOOTH = {"eps": 1e-4, "clip": 1.0}
SETTINGS: list[dict[str, Any]] = [
    {"lr": 1e-2, "lora": {"rank": 4}},
    {"lr": 3e-2, "lora": {"rank": 8, "alpha": 8}, "optimizer": {**SMOOTH, "weight_decay": 0.1}},
    {"lr": 1e-3, "lora": {"rank": 2}, "warmup_steps": 2},
]
EPOCHS = [(1, 2), (2,), (1,)]  # the last training ends while the others go on


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def specs(base: Path, at_once: int, **layout: Any) -> list[TrainingSpec]:
    values = {"zero": "auto", "micro_batch": 2, "lora_at_once": at_once, **layout}
    return [
        make_spec(base, epochs, "linear", 3, values, method="lora", **{"optimizer": SMOOTH, **setting})
        for setting, epochs in zip(SETTINGS, EPOCHS, strict=True)
    ]


Result = tuple[TrainingSummary, list[StepDone], dict[str, torch.Tensor]]


def train(spec: TrainingSpec, folder: Path, member: GroupMember | None = None) -> Result:
    told = Told()
    summary = train_trajectory(spec, make_samples(), folder, told, member=member)
    return summary, told.of(StepDone), load_file(summary.snapshots[max(spec.snapshots)] / "adapter_model.safetensors")


def train_together(wanted: list[TrainingSpec], folder: Path) -> list[Result]:
    found: dict[int, Result] = {}

    def one(number: int, member: GroupMember) -> None:
        found[number] = train(wanted[number], folder / str(number), member)

    errors = AdapterGroup(wanted[0].layout).train([partial(one, number) for number in range(len(wanted))])
    assert errors == [None] * len(wanted)
    return [found[number] for number in range(len(wanted))]


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("alone")
    return [train(spec, folder / str(number)) for number, spec in enumerate(specs(base, 1))]


def assert_equal(found: list[Result], expected: list[Result]) -> None:
    """Assert that trainings are the same within the rounding of float32."""
    for (_, steps, weights), (_, expected_steps, expected_weights) in zip(found, expected, strict=True):
        assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected_steps], abs=2e-6)
        norms = [step.grad_norm for step in expected_steps]
        assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-5)
        assert [step.lr for step in steps] == [step.lr for step in expected_steps]
        assert weights.keys() == expected_weights.keys()
        assert max(float((weights[name] - expected_weights[name]).abs().max()) for name in weights) < 2e-6


@pytest.mark.parametrize(
    "layout", [{}, {"packing": True, "micro_batch": "auto", "gradient_checkpointing": "selective"}]
)
def test_trainings_together_are_what_each_is_alone(
    base: Path, tmp_path: Path, alone: list[Result], layout: dict[str, Any]
) -> None:
    assert_equal(train_together(specs(base, 3, **layout), tmp_path), alone)


def test_adapters_of_the_output_layer_together_are_what_each_is_alone(base: Path, tmp_path: Path) -> None:
    def wanted(at_once: int) -> list[TrainingSpec]:
        layout = {"zero": "auto", "lora_at_once": at_once}
        loras: list[dict[str, Any]] = [{"rank": 4, "targets": ["q_proj", "lm_head"]}] * 2
        return [
            make_spec(base, layout=layout, method="lora", lr=lr, lora=lora, optimizer=SMOOTH)
            for lr, lora in zip((1e-2, 1e-3), loras, strict=True)
        ]

    expected = [train(spec, tmp_path / f"alone{number}") for number, spec in enumerate(wanted(1))]
    assert_equal(train_together(wanted(2), tmp_path), expected)


def test_adapter_in_bf16_is_scaled_as_alone() -> None:
    """By 4/3, which bf16 does not hold."""
    torch.manual_seed(0)
    base = nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)
    alone = get_peft_model(nn.Sequential(base), LoraConfig(r=3, lora_alpha=4, target_modules=["0"]))
    layer: Any = alone.base_model.model[0]
    for part in (layer.lora_A, layer.lora_B):
        nn.init.normal_(part["default"].to(torch.bfloat16).weight)
    rows = torch.randn(1, 512, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        low = nn.functional.linear(rows, layer.lora_A["default"].weight)
        up = layer.lora_B["default"].weight.double()
        wanted = base(rows).double() + (low.double() * 4 / 3) @ up.mT
        found = JointLayer(base, {0: layer}, [0])(rows).double()
    assert abs(float((found * wanted).sum() / (wanted * wanted).sum()) - 1) < 3e-4


def test_memory_that_is_too_small_for_all_halves_the_micro_batch_of_each(
    base: Path, tmp_path: Path, alone: list[Result]
) -> None:
    with SmallMemory(rows=4):  # not for three trainings' two samples each
        found = train_together(specs(base, 3), tmp_path)
    assert [summary.micro_batch for summary, *_ in found] == [{"samples": 1}] * 3
    assert_equal(found, alone)


def test_trainings_that_stopped_at_different_steps_go_on_together(
    base: Path, tmp_path: Path, alone: list[Result]
) -> None:
    """As after a kill, where each has the checkpoint that it wrote last."""
    wanted = specs(base, 3)
    told: list[Told] = []

    def one(until: list[int], number: int, member: GroupMember) -> None:
        told.append(heard := Told())

        def stop() -> bool:
            return len(heard.of(StepDone)) == until[number]

        with begin(tmp_path / str(number)) as attempt:
            store = CheckpointStore(attempt.storage, attempt.claim, None)
            train_trajectory(wanted[number], make_samples(), attempt.folder, heard, store, stop, member=member)

    def train_until(until: list[int]) -> list[Exception | None]:
        told.clear()
        return AdapterGroup(wanted[0].layout).train([partial(one, until, number) for number in range(3)])

    errors = train_until([0, 3, 1])  # after as many steps, and the one that is begun
    assert [type(error) for error in errors] == [Interrupted] * 3
    errors = train_until([9, 9, 9])
    assert errors == [None] * 3
    assert [heard.of(Resumed)[0].step for heard in told] == [1, 4, 2]
    losses = [[step.loss for step in steps] for _, steps, _ in alone]
    assert [heard.losses for heard in told] == [pytest.approx(losses[0][1:], abs=2e-6)] + [
        pytest.approx(losses[number][step:], abs=2e-6) for number, step in ((1, 4), (2, 2))
    ]


def test_training_that_fails_leaves_the_others(base: Path, tmp_path: Path, alone: list[Result]) -> None:
    wanted = specs(base, 3)
    found: dict[int, Result] = {}

    def fails(member: GroupMember) -> None:
        def at_step(event: object) -> None:
            if isinstance(event, StepDone):
                raise OSError("disk full")

        train_trajectory(wanted[0], make_samples(), tmp_path / "0", at_step, member=member)

    def one(number: int, member: GroupMember) -> None:
        found[number] = train(wanted[number], tmp_path / str(number), member)

    errors = AdapterGroup(wanted[0].layout).train([fails, partial(one, 1), partial(one, 2)])
    assert [str(error) if error else "" for error in errors] == ["disk full", "", ""]
    assert_equal([found[1], found[2]], alone[1:])


def test_base_that_drops_out_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2", "gpt2")
    config = base / "config.json"
    config.write_text(config.read_text().replace('"resid_pdrop": 0.0', '"resid_pdrop": 0.1'))
    (spec, *_) = specs(base, 2)
    errors = AdapterGroup(spec.layout).train([partial(train, spec, tmp_path / "one")])
    assert isinstance(errors[0], Unsupported) and "drops out" in str(errors[0])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (OPTConfig, {"ffn_dim": 64}),  # dropout 0.1 by default
        (OPTConfig, {"ffn_dim": 64, "dropout": 0.0}),
        (OPTConfig, {"ffn_dim": 64, "dropout": 0.0, "layerdrop": 0.5}),
        (BloomConfig, {"hidden_dropout": 0.1}),
        (FalconConfig, {}),
        (FalconConfig, {"hidden_dropout": 0.1}),
        (Starcoder2Config, {"residual_dropout": 0.1}),
        (GPTJConfig, {"attn_pdrop": 0.1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "rotary_dim": 8}),
        (MixtralConfig, {"router_jitter_noise": 0.1}),
        (GPTNeoXConfig, {"classifier_dropout": 0.1}),  # of a head that it does not have
        (GPT2Config, {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "summary_first_dropout": 0.1}),
    ],
)
def test_base_is_known_to_drop_out_where_its_passes_do(kind: type[PreTrainedConfig], values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64}
    model = AutoModelForCausalLM.from_config(kind(**sizes, word_embed_proj_dim=32, **values)).train()
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        one, *others = (model(input_ids=ids).logits for _ in range(8))
    assert drops_out(model) == any(not torch.equal(one, other) for other in others)


@pytest.mark.parametrize(
    ("setting", "layout", "rule"),
    [
        ({"method": "full"}, {}, "not for full tuning"),
        ({"lora": {"dropout": 0.1}}, {}, "lora.dropout"),
        ({}, {"workers": 2}, "one worker"),
        ({}, {"zero": 1}, "without DeepSpeed"),
        ({}, {"offload": "optimizer"}, "without DeepSpeed"),
        ({}, {"kernels": "compiled"}, "kernels: auto"),
        ({}, {"gradient_checkpointing": "auto"}, "use false, selective or true"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_in_one_sentence(
    setting: dict[str, Any], layout: dict[str, Any], rule: str
) -> None:
    wanted = Setting(**{"method": "lora", "lr": 1e-3, "batch": 4, **setting})
    (problem,) = layout_problems(wanted, Layout(**layout, lora_at_once=2))
    assert problem.place == "resources.lora_at_once" and rule in problem.rule
    assert layout_problems(wanted, Layout(**layout)) == []


def test_interrupt_reaches_every_function_that_takes_turns() -> None:
    seen: list[str] = []

    def function(name: str) -> Callable[[Turn[str, str, None]], None]:
        def asks(turn: Turn[str, str, None]) -> None:
            try:
                turn.ask(name)
            finally:
                seen.append(name)

        return asks

    def serve(asked: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_turns([function("one"), function("other")], serve)
    assert seen == ["one", "other"]
