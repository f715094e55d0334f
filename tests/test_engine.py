"""Layouts under DeepSpeed: none changes the update; memory that runs out does not either."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import make_base, make_samples, make_spec, train

from massive_sft import modeling
from massive_sft.errors import InvalidInput
from massive_sft.sft import loop
from massive_sft.sft.engine import layout_problems
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout

HERE = Path(__file__).parent
# Larger than the gradients that rounding decides, so that AdamW does not blow those up to a whole learning rate.
SMOOTH = {"eps": 1e-4, "clip": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def weights(folder: Path, epoch: int = 2) -> torch.Tensor:
    """All weights of a snapshot in one float32 vector."""
    (file,) = (folder / "snapshots" / f"epoch-{epoch}").glob("*.safetensors")
    return torch.cat([tensor.float().reshape(-1) for _, tensor in sorted(load_file(file).items())])


@pytest.fixture(scope="module")
def reference(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses and weights of two epochs (batches of 4, 4 and 3), whole batches at once at stage 0, by method."""
    results = {}
    for method in ("full", "lora"):
        folder = tmp_path_factory.mktemp(method)
        spec = make_spec(base, (2,), layout={"micro_batch": 4}, method=method, optimizer=SMOOTH)
        _, steps = train(spec, make_samples(), folder)
        results[method] = ([step.loss for step in steps], [step.grad_norm for step in steps], weights(folder))
    return results


@pytest.mark.parametrize(
    "layout",
    [
        {"micro_batch": 1},
        {"micro_batch": 3},
        {"micro_batch": 2, "packing": True},
        {"micro_batch": "auto", "packing": True},
        {"micro_batch": 3, "gradient_checkpointing": True},
        {"micro_batch": 3, "zero": 1},
        {"micro_batch": 1, "zero": 2},
        {"micro_batch": 3, "zero": 3},
        {"micro_batch": 1, "zero": 3, "packing": True, "gradient_checkpointing": True},
        {"micro_batch": 3, "zero": 1, "offload": "optimizer"},
        {"micro_batch": 3, "zero": 2, "offload": "optimizer"},
        {"micro_batch": 3, "zero": 3, "offload": "optimizer"},
        {"micro_batch": 3, "attention": "eager"},
    ],
    ids=lambda layout: ",".join(f"{key}={value}" for key, value in layout.items()),
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_update_any_layout_on_one_rank_is_the_same(
    base: Path, reference: dict[str, Any], tmp_path: Path, layout: dict[str, Any], method: str
) -> None:
    spec = make_spec(base, (2,), layout=layout, method=method, optimizer=SMOOTH)
    _, steps = train(spec, make_samples(), tmp_path)
    losses, norms, expected = reference[method]
    assert [step.loss for step in steps] == pytest.approx(losses, abs=2e-6)
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-5)
    assert (weights(tmp_path) - expected).abs().max() < 1e-6


def test_update_two_ranks_are_the_same_at_every_stage(base: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    """The last batch of an epoch has 3 samples: with micro-batches of 1 one rank ends with a stand-in."""
    specs = []
    for zero in (0, 1, 2, 3):
        for method in ("full", "lora") if zero in (0, 3) else ("full",):
            layout = {"workers": 2, "zero": zero, "micro_batch": 1 + zero % 2, "packing": zero == 3}
            spec = make_spec(base, (2,), layout=layout, method=method, optimizer=SMOOTH)
            specs.append(spec.model_copy(update={"trajectory": f"zero{zero}-{method}"}))
    single = make_spec(base, (2,), layout={"workers": 2, "zero": 2, "micro_batch": 1}, batch=10, optimizer=SMOOTH)
    specs.append(single.model_copy(update={"trajectory": "one-sample-last"}))
    (tmp_path / "specs.jsonl").write_text("".join(spec.model_dump_json() + "\n" for spec in specs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HERE / "torchrun_layouts.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": f"{HERE.parent}:{HERE}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for spec in specs[:-1]:
        folder = tmp_path / spec.trajectory
        steps = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
        losses, norms, expected = reference[spec.setting.method]
        assert [step["loss"] for step in steps] == pytest.approx(losses, abs=2e-6), spec.trajectory
        assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-5), spec.trajectory
        assert (weights(folder) - expected).abs().max() < 1e-6, spec.trajectory
        one, other = (json.loads((tmp_path / f"{spec.trajectory}-{rank}.json").read_text()) for rank in (0, 1))
        del one["seconds"], other["seconds"]
        assert one == other
    assert json.loads((tmp_path / "one-sample-last-1.json").read_text())["steps"] == 4


def test_bf16_gradients_of_many_micro_batches_are_summed_in_float32(base: Path, tmp_path: Path) -> None:
    norms = []
    for zero, micro in ((1, 1), (2, 1), (3, 1), (1, 24)):
        spec = make_spec(base, layout={"zero": zero, "micro_batch": micro}, batch=24, precision="bf16")
        _, steps = train(spec, make_samples(24), tmp_path / f"{zero}-{micro}")
        norms.append(steps[0].grad_norm)
    assert norms[:3] == pytest.approx([norms[3]] * 3, rel=3e-3)


def test_bf16_loss_equals_that_of_the_model_as_transformers_loads_it(base: Path, tmp_path: Path) -> None:
    """DeepSpeed casts a module to bf16; rotary frequencies must stay float32, as in evaluation."""
    spec = make_spec(base, layout={"zero": 1, "micro_batch": 1}, batch=1, precision="bf16")
    samples = make_samples(1, longest=60)
    _, steps = train(spec, samples, tmp_path)
    model = modeling.load_model(spec.model, "bf16")
    ids = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model(input_ids=ids[None]).logits[0, :-1].float(), ids[1:], reduction="none"
        )
    assert steps[0].loss == pytest.approx(float(losses[torch.from_numpy(samples.trainable[1:])].mean()), abs=1e-5)


class FullMemory:
    """Makes a model's passes run out of memory, for real calls: once for every micro-batch of more than ``rows``."""

    def __init__(self, rows: int, backward: bool):
        self.rows, self.backward, self.raised = rows, backward, 0

    def attach(self, model: Any) -> None:
        layer = model.get_decoder().layers[0]
        hook = layer.mlp.register_full_backward_hook if self.backward else layer.register_forward_pre_hook
        hook(self._refuse)

    def _refuse(self, module: Any, tensors: Any, *_: Any) -> None:
        if tensors[0].shape[0] > self.rows:
            self.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], FullMemory]:
    """Every model that is loaded from now on has room for so many rows."""

    def limit(rows: int, backward: bool) -> FullMemory:
        memory = FullMemory(rows, backward)
        load = modeling.load_model

        def loaded(*arguments: Any) -> Any:
            model = load(*arguments)
            memory.attach(model)
            return model

        monkeypatch.setattr(modeling, "load_model", loaded)
        return memory

    return limit


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step(
    base: Path, reference: dict[str, Any], tmp_path: Path, small_memory: Any, zero: int, backward: bool
) -> None:
    memory = small_memory(1, backward)
    spec = make_spec(base, (2,), layout={"zero": zero, "micro_batch": 3}, optimizer=SMOOTH)
    summary, steps = train(spec, make_samples(), tmp_path)
    losses, norms, expected = reference["full"]
    assert memory.raised == 2 and summary.micro_batch == {"samples": 1}
    assert [step.loss for step in steps] == pytest.approx(losses, abs=2e-6)
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-5)
    assert (weights(tmp_path) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_out_of_memory_in_bf16_equals_the_smaller_micro_batch(
    base: Path, tmp_path: Path, small_memory: Any, zero: int
) -> None:
    layout = {"zero": zero, "micro_batch": 2}
    spec = make_spec(base, (2,), layout=layout, batch=8, precision="bf16")
    _, expected = train(spec, make_samples(), tmp_path / "plain")
    small_memory(2, True)
    larger = make_spec(base, (2,), layout={**layout, "micro_batch": 4}, batch=8, precision="bf16")
    _, steps = train(larger, make_samples(), tmp_path / "halved")
    assert [step.loss for step in steps] == [step.loss for step in expected]
    assert torch.equal(weights(tmp_path / "plain"), weights(tmp_path / "halved"))


def test_out_of_memory_with_one_sample_says_what_to_do(base: Path, tmp_path: Path, small_memory: Any) -> None:
    small_memory(0, False)
    with pytest.raises(loop.OutOfMemory, match="gradient_checkpointing"):
        train(make_spec(base, layout={"micro_batch": 2}), make_samples(), tmp_path)


def test_layout_bf16_at_stage_0_is_refused_with_the_remedy(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="zero: 1"):
        train(make_spec(base, precision="bf16"), make_samples(), tmp_path)


@pytest.mark.parametrize("layout", [{"workers": 2}, {"gpus": 1}], ids=str)
def test_layout_that_this_process_cannot_have_is_refused(base: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    if "gpus" in layout and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidInput, match="must be"):
        train(make_spec(base, layout={"zero": 1, **layout}), make_samples(), tmp_path)


@pytest.mark.parametrize(
    ("layout", "problems"),
    [
        ({"zero": 1}, 0),
        ({"zero": 0, "offload": "optimizer"}, 2),
        ({"zero": 1, "gpus": 2}, 1),
        ({"zero": 1, "attention": "flash_attention_2"}, 1),
    ],
)
def test_layout_problems_lists_every_problem(layout: dict[str, Any], problems: int) -> None:
    setting = Setting(method="full", lr=1e-3, batch=4)
    assert len(layout_problems(setting, Layout(**layout))) == problems


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_finished_training_leaves_no_model_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int, method: str
) -> None:
    """A lane trains one trajectory after another in one process: what stays of each would add up."""
    load, models = modeling.load_model, []

    def loaded(*arguments: Any) -> Any:
        model = load(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(modeling, "load_model", loaded)
    # Stage 3 knows the order of its modules, and keeps things by it, only after some steps.
    train(make_spec(base, (2,), layout={"zero": zero}, method=method), make_samples(), tmp_path)
    assert [model() for model in models] == [None]
