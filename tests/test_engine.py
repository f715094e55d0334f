"""Layouts, by torch alone and under DeepSpeed: none changes the update; memory that runs out does not either."""

from __future__ import annotations

import errno
import gc
import json
import resource
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, torchrun
from safetensors.torch import load_file, save_file
from small_memory import SmallMemory
from tiny_training import make_base, make_samples, make_spec, train

from massive_sft.core.errors import InvalidInput
from massive_sft.cost.memory import bucket_bytes, bytes_per_number, checkpointing_choices
from massive_sft.models import pretrained
from massive_sft.sweep.schema import Model, Setting
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training import snapshot
from massive_sft.training.batches import batches_between
from massive_sft.training.deepspeed_engine import torch_restored
from massive_sft.training.engine import free_memory, make_engine
from massive_sft.training.layout import layout_problems
from massive_sft.training.loading import load_for_training
from massive_sft.training.loss import SummedLoss
from massive_sft.training.micro_batch import OutOfMemory, first_trials, less_and_less, tried
from massive_sft.training.packing import Limit, collate
from massive_sft.training.ranks import join_group
from massive_sft.training.step import Decision, StepRunner

# Larger than the gradients that rounding decides, so that AdamW does not blow those up to a whole learning rate.
SMOOTH = {"eps": 1e-4, "clip": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """An engine of stage 3 that a test makes by itself changes nothing for others."""
    with torch_restored():
        yield


def weights(folder: Path, epoch: int = 2) -> torch.Tensor:
    """All weights of a snapshot in one float32 vector."""
    files = (folder / "snapshots" / f"epoch-{epoch}").glob("*.safetensors")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return torch.cat([tensor.float().reshape(-1) for _, tensor in sorted(tensors.items())])


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
        {"micro_batch": 3, "zero": "auto"},
        {"micro_batch": 2, "zero": "auto", "packing": True, "gradient_checkpointing": True},
        {"micro_batch": 2, "packing": True},
        {"micro_batch": "auto", "packing": True},
        {"micro_batch": 3, "gradient_checkpointing": True},
        {"micro_batch": 3, "zero": "auto", "gradient_checkpointing": "selective"},
        {"micro_batch": 1, "zero": 2, "packing": True, "gradient_checkpointing": "selective"},
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


def test_stage_3_leaves_what_is_computed_after_it_as_it_was(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, values = torch.nn.Linear(64, 48).bfloat16(), torch.randn(3, 7, 64).bfloat16()
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)  # whatever tests before left
    before = layer(values)
    train(make_spec(base, layout={"zero": 3}), make_samples(4), tmp_path)
    assert torch.equal(layer(values), before)


def two_rank_specs(base: Path) -> Iterator[tuple[str, TrainingSpec, dict[str, int]]]:
    """What two ranks train, by name, and what the second has memory for."""
    for zero in (0, 1, 2, 3):
        for method in ("full", "lora") if zero in (0, 3) else ("full",):
            layout = {"workers": 2, "zero": zero, "micro_batch": 1 + zero % 2, "packing": zero == 3}
            yield f"fp32-{method}-{zero}", make_spec(base, (2,), layout=layout, method=method, optimizer=SMOOTH), {}
        if zero in (1, 3):
            whole = {"workers": 2, "zero": zero, "micro_batch": 2}
            yield f"small-{zero}", make_spec(base, (2,), layout=whole, optimizer=SMOOTH), {"rows": 1}
        if zero:
            layout = {"workers": 2, "zero": zero, "micro_batch": 1}
            yield f"bf16-{zero}", make_spec(base, (2,), layout=layout, precision="bf16", optimizer=SMOOTH), {}
    yield "small-auto", make_spec(base, (2,), layout={"workers": 2, "zero": 2}, optimizer=SMOOTH), {"tokens": 32}
    auto = {"workers": 2, "zero": 2, "micro_batch": 2, "gradient_checkpointing": "auto"}
    yield "ways", make_spec(base, (2,), layout=auto, method="lora"), {"ways": ["selective"]}
    yield "none", make_spec(base, layout={"workers": 2, "zero": 3}), {"rows": 0}
    yield "last", make_spec(base, (2,), layout={"workers": 2, "zero": 2, "micro_batch": 1}, batch=10), {}


@pytest.fixture(scope="module")
def two_ranks(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks trained ``two_rank_specs``, and each told its summary."""
    folder = tmp_path_factory.mktemp("two")
    with (folder / "specs.jsonl").open("w") as file:
        for name, spec, memory in two_rank_specs(base):
            content = spec.model_copy(update={"trajectory": name}).model_dump(mode="json")
            file.write(json.dumps({"spec": content, "memory": memory}) + "\n")
    code, printed = call(torchrun, Path(__file__).with_name("torchrun_layouts.py"), folder, out=folder / "printed")
    assert code == 0, printed[-3000:]
    return folder


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a training."""
    steps = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [step["loss"] for step in steps], [step["grad_norm"] for step in steps]


def summaries(folder: Path, name: str) -> list[dict[str, Any]]:
    """What both ranks told of a training, but for what the clock says."""
    found = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in found]


FP32 = ["fp32-full-0", "fp32-lora-0", "fp32-full-1", "fp32-full-2", "fp32-full-3", "fp32-lora-3"]
SMALL = ["small-1", "small-3", "small-auto"]


@pytest.mark.parametrize("name", FP32 + SMALL)
def test_update_of_two_ranks_is_that_of_one(two_ranks: Path, reference: dict[str, Any], name: str) -> None:
    """The last batch of an epoch has 3 samples: with micro-batches of 1 one rank ends with a stand-in."""
    losses, norms, expected = reference["lora" if "lora" in name else "full"]
    found = curve(two_ranks / name)
    assert found[0] == pytest.approx(losses, abs=2e-6)
    assert found[1] == pytest.approx(norms, rel=1e-5)
    assert (weights(two_ranks / name) - expected).abs().max() < 1e-6
    one, other = summaries(two_ranks, name)
    assert one == other


def bases(folder: Path, name: str) -> list[dict[str, Any]]:
    """What both ranks told of the base that they loaded."""
    return [json.loads((folder / f"{name}-{rank}-base.json").read_text()) for rank in (0, 1)]


def test_base_at_stage_3_is_loaded_by_shares(two_ranks: Path) -> None:
    assert [one["share"] for one in bases(two_ranks, "fp32-full-3")] == [pytest.approx(0.5, abs=0.01)] * 2


@pytest.mark.parametrize("name", ["fp32-full-0", "fp32-lora-0", "fp32-full-1", "fp32-full-2", "bf16-1"])
def test_base_at_other_stages_is_read_by_one_rank(two_ranks: Path, name: str) -> None:
    one, other = bases(two_ranks, name)
    assert (one["share"], one["digest"]) == (other["share"], other["digest"]) and one["share"] == 1
    assert not other["mapped"] and one["mapped"] == name.startswith("fp32")  # in bf16 it is a converted copy


@pytest.mark.parametrize("name", ["fp32-full-0", "fp32-full-3"])
def test_snapshot_of_two_ranks_is_written_in_pieces_that_transformers_loads(two_ranks: Path, name: str) -> None:
    folder = two_ranks / name / "snapshots" / "epoch-2"
    sizes = {name: entry["bytes"] for name, entry in snapshot.verify(folder)["files"].items()}
    assert sizes.keys() == {path.name for path in folder.iterdir()} - {snapshot.NAME}
    one, other = (sizes[f"model-0000{number}-of-00002.safetensors"] for number in (1, 2))
    assert min(one, other) > 0.4 * (one + other)
    loaded = pretrained.load_model(Model(path=str(folder)), "fp32").named_parameters()
    in_files = torch.cat([weight.detach().reshape(-1) for _, weight in sorted(loaded)])
    assert torch.equal(in_files, weights(two_ranks / name))


def test_disk_that_refuses_weights_says_so_by_its_number(tmp_path: Path) -> None:
    """As a full one does: this one takes no files beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as refused, pretrained.saving(tmp_path):
            save_file({"weight": torch.zeros(4096)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(tmp_path))


def test_rank_without_a_sample_in_the_last_step_takes_part(two_ranks: Path) -> None:
    assert summaries(two_ranks, "last")[1]["steps"] == 4


@pytest.mark.parametrize("name", SMALL)
def test_micro_batch_that_one_of_two_ranks_has_no_memory_for_is_halved_on_both(two_ranks: Path, name: str) -> None:
    (size,) = {tuple(one["micro_batch"].items()) for one in summaries(two_ranks, name)}
    assert size[0] in {("samples", 1), ("tokens", 32)}


def test_two_ranks_recompute_what_the_one_with_less_memory_must(two_ranks: Path) -> None:
    for summary in summaries(two_ranks, "ways"):
        assert summary["gradient_checkpointing"] == "selective" and summary["micro_batch"] == {"samples": 2}


def test_sample_that_one_of_two_ranks_has_no_memory_for_ends_both_with_the_remedy(two_ranks: Path) -> None:
    one, other = summaries(two_ranks, "none")
    assert one == other and "lower max_length" in one["error"]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_update_does_not_depend_on_the_number_of_ranks(
    two_ranks: Path, base: Path, tmp_path: Path, zero: int
) -> None:
    """Micro-batches of one sample give all ranks the gradients of one to add, so only the addition could differ."""
    spec = make_spec(base, (2,), layout={"zero": 1, "micro_batch": 1}, precision="bf16", optimizer=SMOOTH)
    train(spec, make_samples(), tmp_path)
    found, expected = curve(two_ranks / f"bf16-{zero}"), curve(tmp_path)
    assert found[0] == pytest.approx(expected[0], abs=2e-6)
    assert found[1] == pytest.approx(expected[1], rel=2e-6)


def test_bf16_gradients_of_many_micro_batches_are_summed_in_float32(base: Path, tmp_path: Path) -> None:
    norms = []
    for zero, micro in (("auto", 1), (1, 1), (2, 1), (3, 1), ("auto", 24)):
        spec = make_spec(base, layout={"zero": zero, "micro_batch": micro}, batch=24, precision="bf16")
        _, steps = train(spec, make_samples(24), tmp_path / f"{zero}-{micro}")
        norms.append(steps[0].grad_norm)
    assert norms[:4] == pytest.approx([norms[4]] * 4, rel=3e-3)


@pytest.mark.parametrize("zero", [1, 3])
def test_bf16_loss_equals_that_of_the_model_as_transformers_loads_it(base: Path, tmp_path: Path, zero: int) -> None:
    """DeepSpeed casts a module to bf16; rotary frequencies must stay float32, as in evaluation."""
    spec = make_spec(base, layout={"zero": zero, "micro_batch": 1}, batch=1, precision="bf16")
    samples = make_samples(1, longest=60)
    _, steps = train(spec, samples, tmp_path)
    model = pretrained.load_model(spec.model, "bf16")
    ids = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model(input_ids=ids[None]).logits[0, :-1].float(), ids[1:], reduction="none"
        )
    assert steps[0].loss == pytest.approx(float(losses[torch.from_numpy(samples.trainable[1:])].mean()), abs=1e-5)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("zero", ["auto", 0, 1, 2, 3])
def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step(
    base: Path, reference: dict[str, Any], tmp_path: Path, zero: int | str, backward: bool
) -> None:
    spec = make_spec(base, (2,), layout={"zero": zero, "micro_batch": 3}, optimizer=SMOOTH)
    with SmallMemory(rows=1, backward=backward) as memory:
        summary, steps = train(spec, make_samples(), tmp_path)
    losses, norms, expected = reference["full"]
    assert memory.raised == 2 and summary.micro_batch == {"samples": 1}
    assert [step.loss for step in steps] == pytest.approx(losses, abs=2e-6)
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-5)
    assert (weights(tmp_path) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("zero", ["auto", 1, 2, 3])
def test_out_of_memory_in_bf16_equals_the_smaller_micro_batch(base: Path, tmp_path: Path, zero: int | str) -> None:
    layout = {"zero": zero, "micro_batch": 2}
    spec = make_spec(base, (2,), layout=layout, batch=8, precision="bf16")
    _, expected = train(spec, make_samples(), tmp_path / "plain")
    larger = make_spec(base, (2,), layout={**layout, "micro_batch": 4}, batch=8, precision="bf16")
    with SmallMemory(rows=2, backward=True):
        _, steps = train(larger, make_samples(), tmp_path / "halved")
    assert [step.loss for step in steps] == [step.loss for step in expected]
    assert torch.equal(weights(tmp_path / "plain"), weights(tmp_path / "halved"))


@pytest.mark.parametrize("zero", ["auto", 1, 2, 3])
def test_first_pass_of_one_rank_halves_the_micro_batch_and_leaves_no_trace(
    base: Path, reference: dict[str, Any], tmp_path: Path, zero: int | str
) -> None:
    spec = make_spec(base, (2,), layout={"zero": zero, "micro_batch": 4}, optimizer=SMOOTH)
    samples = make_samples()
    join_group(spec.layout)
    with SmallMemory(rows=2) as memory:
        loss = SummedLoss(load_for_training(spec, samples))
    engine = make_engine(loss, spec.setting, spec.layout)
    random_state = torch.get_rng_state()
    limit = tried(spec, samples, engine, loss.model, first_trials(spec, samples, engine, loss.model, False)).limit
    assert torch.equal(torch.get_rng_state(), random_state)
    assert limit == Limit(samples=2) and memory.raised == 1
    runner = StepRunner(spec, samples, engine, 0, limit, (), tmp_path)
    batches = batches_between(0, 6, len(samples), spec.setting.batch, spec.setting.seed)
    steps = [runner.run(batch, lambda: Decision.GO_ON)[0] for batch in batches]
    losses, norms, _ = reference["full"]
    assert [step.loss for step in steps] == pytest.approx(losses, abs=2e-6)
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-5)
    engine.close()


@pytest.mark.parametrize(
    ("room", "way", "rows"),
    [({"ways": ("selective", True)}, "selective", 4), ({"ways": (True,)}, True, 4), ({"rows": 2}, True, 2)],
)
def test_first_pass_recomputes_more_before_it_halves_the_micro_batch(
    base: Path, room: dict[str, Any], way: bool | str, rows: int
) -> None:
    spec = make_spec(base, layout={"micro_batch": 4, "gradient_checkpointing": "auto"}, method="lora")
    samples = make_samples()
    join_group(spec.layout)
    with SmallMemory(**room):
        loss = SummedLoss(load_for_training(spec, samples))
    engine = make_engine(loss, spec.setting, spec.layout)
    trial = tried(spec, samples, engine, loss.model, first_trials(spec, samples, engine, loss.model, False))
    assert (trial.layout.gradient_checkpointing, trial.limit) == (way, Limit(samples=rows))
    engine.close()


def test_automatic_micro_batches_shrink_to_what_is_enough_before_more_is_recomputed() -> None:
    choices = checkpointing_choices(Layout(gradient_checkpointing="auto"))
    trials = less_and_less(choices, Limit(tokens=9000), longest=600, enough=4096)
    assert [(trial.layout.gradient_checkpointing, trial.limit.tokens) for trial in trials] == [
        (False, 9000), (False, 4500), ("selective", 4500), (True, 4500), (True, 2250), (True, 1125), (True, 600)
    ]  # fmt: skip


def test_training_on_a_cpu_takes_no_checkpointing_by_itself(base: Path, tmp_path: Path) -> None:
    summary, _ = train(make_spec(base, layout={"gradient_checkpointing": "auto"}), make_samples(4), tmp_path)
    assert summary.gradient_checkpointing is False


def test_out_of_memory_with_one_sample_says_what_to_do(base: Path, tmp_path: Path) -> None:
    with SmallMemory(rows=0), pytest.raises(OutOfMemory, match="gradient_checkpointing"):
        train(make_spec(base, layout={"micro_batch": 2}), make_samples(), tmp_path)


def held_bytes() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    found += [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in map(torch.Tensor.untyped_storage, found)}.values())


def held_bytes_at_last(expected: float, tolerance: float) -> int:
    """Bytes of all tensors there are, once gloo's threads have let go of what they reduced last."""
    over = time.monotonic() + 10
    while abs((held := held_bytes()) - expected) > tolerance and time.monotonic() < over:
        time.sleep(0.01)
    return held


@pytest.mark.parametrize(
    ("precision", "zero"),
    [
        *(("fp32", zero) for zero in ("auto", 0, 1, 2, 3)),
        *(("bf16", zero) for zero in ("auto", 1, 2, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_first_step_adds_the_bytes_that_the_engine_says(base: Path, precision: str, zero: int | str) -> None:
    """Gradients that lie there before it are not counted twice, and none in bf16 is left at the end of a pass."""
    spec = make_spec(base, layout={"zero": zero, "micro_batch": 4}, precision=precision)
    samples = make_samples(4)
    join_group(spec.layout)
    module = SummedLoss(load_for_training(spec, samples))
    engine = make_engine(module, spec.setting, spec.layout)
    try:
        before, said = held_bytes(), engine.first_step_bytes()
        if isinstance(zero, int) and zero in (1, 2) and (precision, zero) != ("bf16", 1):
            said -= bucket_bytes(engine.trained, zero, bytes_per_number(precision))  # given back at the end of the pass
        batch = collate(samples, np.arange(4), packing=False)
        engine.accumulate([batch], 10)
        engine.step(1e-3)
        engine.accumulate([batch], 10)
        added = held_bytes_at_last(before + said, engine.trained / 2) - before
        assert added / engine.trained == pytest.approx(said / engine.trained, abs=0.5)
    finally:
        module.release()
        engine.close()
        del engine, module
        free_memory()


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


@pytest.mark.parametrize(
    ("layout", "stage"), [({}, None), ({"workers": 2}, 1), ({"offload": "optimizer"}, 1), ({"zero": 0}, 0)], ids=str
)
def test_deepspeed_is_for_several_workers_offload_and_stages_that_are_asked_for(
    layout: dict[str, Any], stage: int | None
) -> None:
    assert Layout(**layout).stage == stage


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("zero", ["auto", 0, 1, 2, 3])
def test_finished_training_leaves_no_model_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int | str, method: str
) -> None:
    """A lane trains one trajectory after another in one process: what stays of each would add up."""
    load, models = pretrained.load_model, []

    def loaded(*arguments: Any) -> Any:
        model = load(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(pretrained, "load_model", loaded)
    # Stage 3 knows the order of its modules, and keeps things by it, only after some steps.
    train(make_spec(base, (2,), layout={"zero": zero}, method=method), make_samples(), tmp_path)
    assert [model() for model in models] == [None]
