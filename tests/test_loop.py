"""One trajectory from start to end: curves, snapshots, determinism, divergence, refusals."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_training import VOCABULARY, make_base, make_samples, make_spec, train
from transformers import AutoModelForCausalLM, BloomConfig

from massive_sft.core.errors import Corrupt, InvalidInput, Unsupported
from massive_sft.data.samples import Samples
from massive_sft.models import pretrained
from massive_sft.training import snapshot
from massive_sft.training.divergence import DivergenceMonitor, LossCurve
from massive_sft.training.events import SnapshotWritten, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.step import StepRunner
from massive_sft.training.summary import TrainingSummary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def tensors(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    (file,) = (folder / "snapshots" / f"epoch-{epoch}").glob("*.safetensors")
    return load_file(file)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_trajectory_learns_and_reports_every_step_and_snapshot(base: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    spec = make_spec(base, (2, 4), lr=1e-2)
    summary = train_trajectory(spec, make_samples(), tmp_path, events.append)
    steps = [event for event in events if not isinstance(event, SnapshotWritten)]
    assert [event.epoch for event in events if isinstance(event, SnapshotWritten)] == [2, 4]
    assert all(isinstance(event, StepDone) for event in events[:6])
    assert [(step.step, step.epoch) for step in steps] == [(i + 1, i // 3 + 1) for i in range(12)]
    assert summary.status == "COMPLETE" and summary.steps == 12
    assert summary.last_loss < summary.first_loss - 0.2
    assert summary.tokens == 4 * len(make_samples().tokens) == sum(step.tokens for step in steps)
    assert summary.trainable_tokens == 4 * make_samples().trainable.sum()
    assert summary.snapshots == {epoch: tmp_path / "snapshots" / f"epoch-{epoch}" for epoch in (2, 4)}
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert lines == [dataclasses.asdict(step) for step in steps]


def test_training_goes_on_while_a_snapshot_is_published(base: Path, tmp_path: Path) -> None:
    goes_on, published, events = threading.Event(), [], []

    def report(event: Any) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.epoch == 2:
            goes_on.set()

    def publish(epoch: int, summary: TrainingSummary) -> bool:
        assert goes_on.wait(60)
        published.append((epoch, summary.steps, snapshot.verify(summary.snapshots[epoch])["step"]))
        return epoch == 1

    train_trajectory(make_spec(base, (1, 2)), make_samples(), tmp_path / "beside", report, publish=publish)
    assert published == [(1, 3, 3), (2, 6, 6)], "each as it was at the end of its epoch"
    told = [event for event in events if not isinstance(event, StepDone)]
    assert [(type(event).__name__, event.epoch) for event in told] == [
        ("SnapshotWritten", 1), ("SnapshotPublished", 1), ("SnapshotWritten", 2)
    ]  # fmt: skip
    assert isinstance(events[3], StepDone), "the first step of the second epoch, before the first is published"
    train(make_spec(base, (1,)), make_samples(), tmp_path / "alone")
    assert same(tensors(tmp_path / "beside", 1), tensors(tmp_path / "alone", 1))


def test_snapshot_that_cannot_be_published_ends_the_training(base: Path, tmp_path: Path) -> None:
    steps: list[Any] = []
    is_full = threading.Event()

    def publish(epoch: int, summary: TrainingSummary) -> bool:
        is_full.set()
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    def report(event: Any) -> None:
        steps.append(event)
        if len(steps) > 3:
            assert is_full.wait(60)

    with pytest.raises(OSError, match="No space left"):
        train_trajectory(make_spec(base, (1, 9)), make_samples(), tmp_path, report, publish=publish)
    assert 3 <= len(steps) <= 6, "one step more, and one while the thread ends"


@pytest.mark.parametrize(
    ("zero", "precision", "method"),
    [(0, "fp32", "full"), (1, "bf16", "lora"), (3, "bf16", "full"), (2, "bf16", "lora")],
)
def test_trajectory_rerun_is_bit_identical(base: Path, tmp_path: Path, zero: int, precision: str, method: str) -> None:
    spec = make_spec(base, (2,), layout={"zero": zero}, precision=precision, method=method, lora={"dropout": 0.2})
    runs = [train(spec, make_samples(), tmp_path / name) for name in ("first", "second")]
    assert [step.loss for step in runs[0][1]] == [step.loss for step in runs[1][1]]
    assert same(tensors(tmp_path / "first", 2), tensors(tmp_path / "second", 2))


def test_trajectory_seed_changes_order_and_adapter(base: Path, tmp_path: Path) -> None:
    curves = []
    for seed in (0, 1):
        _, steps = train(make_spec(base, method="lora", seed=seed), make_samples(), tmp_path / str(seed))
        curves.append([step.tokens for step in steps])
    assert curves[0] != curves[1]
    first, second = tensors(tmp_path / "0", 1), tensors(tmp_path / "1", 1)
    assert not any(torch.equal(first[name], second[name]) for name in first if "lora_A" in name)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_trajectory_shorter_one_of_the_same_horizon_is_a_prefix(base: Path, tmp_path: Path, schedule: str) -> None:
    """What cells share: the snapshot at epoch 1 does not depend on how long the run goes on."""
    for name, epochs in (("short", (1,)), ("long", (1, 2))):
        train(make_spec(base, epochs, schedule=schedule, horizon=3), make_samples(), tmp_path / name)
    assert same(tensors(tmp_path / "short", 1), tensors(tmp_path / "long", 1))


def test_trajectory_learning_rate_follows_the_horizon_not_the_last_snapshot(base: Path, tmp_path: Path) -> None:
    spec = make_spec(base, (1,), schedule="linear", horizon=2, warmup_steps=1)
    _, steps = train(spec, make_samples(), tmp_path)
    assert [step.lr for step in steps] == pytest.approx([0.5e-3, 1e-3, 0.8e-3])


@pytest.mark.parametrize(("zero", "family"), [(1, "llama"), (3, "llama"), (3, "qwen2"), (0, "neox"), (3, "gpt2")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_snapshot_full_loads_in_transformers_with_the_trained_weights(
    tmp_path: Path, zero: int, family: str, precision: str
) -> None:
    """Its loss on a batch of the next epoch is the loss that training sees there."""
    spec = make_spec(make_base(tmp_path / "base", family), (1, 2), layout={"zero": zero or 1}, precision=precision)
    samples = make_samples(4)
    summary, steps = train(spec, samples, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(summary.snapshots[1], dtype="auto")
    assert model.dtype == pretrained.DTYPES[precision]
    assert {value.dtype for value in tensors(tmp_path, 1).values()} == {model.dtype}
    assert mean_loss(model, samples) == pytest.approx(steps[1].loss, abs=1e-5 if precision == "fp32" else 2e-2)
    manifest = snapshot.verify(summary.snapshots[1])
    assert (manifest["epoch"], manifest["step"], manifest["method"]) == (1, 1, "full")
    assert set(manifest["files"]) >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("zero", [1, 3])
def test_snapshot_adapter_loads_in_peft_without_the_base_weights(base: Path, tmp_path: Path, zero: int) -> None:
    spec = make_spec(base, (1, 2), layout={"zero": zero}, method="lora", lr=1e-2, lora={"rank": 2, "alpha": 4})
    samples = make_samples(4)
    summary, steps = train(spec, samples, tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), summary.snapshots[1])
    assert mean_loss(model, samples) == pytest.approx(steps[1].loss, abs=1e-5)
    assert all("lora_" in name for name in tensors(tmp_path, 1))
    assert {path.name for path in summary.snapshots[1].iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "snapshot.json",
    }
    assert summary.trained_parameters == sum(value.numel() for value in tensors(tmp_path, 1).values())
    assert snapshot.verify(summary.snapshots[2])["method"] == "lora"


def mean_loss(model: Any, samples: Samples) -> float:
    total = 0.0
    with torch.no_grad():
        for index in range(len(samples)):
            ids = torch.from_numpy(samples[index][0]).long()
            losses = torch.nn.functional.cross_entropy(
                model(input_ids=ids[None]).logits[0, :-1].float(), ids[1:], reduction="none"
            )
            total += float(losses[torch.from_numpy(samples[index][1][1:].copy())].sum())
    return total / int(samples.trainable.sum())


@pytest.mark.parametrize("damage", ["flip", "remove", "unfinished"])
def test_snapshot_damaged_is_reported(base: Path, tmp_path: Path, damage: str) -> None:
    summary, _ = train(make_spec(base), make_samples(4), tmp_path)
    folder = summary.snapshots[1]
    victim = folder / ("snapshot.json" if damage == "unfinished" else "model.safetensors")
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(bytes(data))
    else:
        victim.unlink()
    with pytest.raises(Corrupt):
        snapshot.verify(folder)


def test_snapshot_written_again_replaces_the_old_one(base: Path, tmp_path: Path) -> None:
    for lr in (1e-3, 1e-2):
        summary, _ = train(make_spec(base, lr=lr), make_samples(4), tmp_path)
        snapshot.verify(summary.snapshots[1])
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["epoch-1"]


# Divergence


def test_trajectory_with_weights_that_are_not_numbers_is_diverged(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "poisoned")
    summary, steps = train(make_spec(tmp_path / "poisoned"), make_samples(), tmp_path / "run")
    assert summary.status == "DIVERGED" and "not finite" in summary.reason
    assert len(steps) == 1 and math.isnan(steps[0].loss)
    assert summary.snapshots == {}
    line = json.loads((tmp_path / "run" / "losses.jsonl").read_text())
    assert line["loss"] == "nan"


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")])
def test_trajectory_with_an_infinite_gradient_is_diverged(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int, precision: str
) -> None:
    load = pretrained.load_model

    def with_infinite_gradient(*arguments: Any) -> Any:
        model = load(*arguments)
        model.model.layers[0].register_full_backward_hook(
            lambda module, inputs, outputs: tuple(grad * math.inf for grad in inputs)
        )
        return model

    monkeypatch.setattr(pretrained, "load_model", with_infinite_gradient)
    spec = make_spec(base, layout={"zero": zero}, precision=precision)
    summary, steps = train(spec, make_samples(), tmp_path)
    assert summary.status == "DIVERGED" and "gradient norm" in summary.reason
    assert len(steps) == 1 and math.isfinite(steps[0].loss)


@pytest.mark.parametrize("lr", [1e3, 10.0])
@pytest.mark.parametrize("family", ["llama", "neox"])
def test_trajectory_at_a_huge_learning_rate_that_stays_finite_is_diverged(
    tmp_path: Path, family: str, lr: float
) -> None:
    base = make_base(tmp_path / "base", family)
    taught, _ = train(make_spec(base, (20,), lr=1e-2), make_samples(), tmp_path / "taught")
    assert taught.last_loss < 3
    summary, steps = train(make_spec(taught.snapshots[20], (20,), lr=lr), make_samples(), tmp_path / "run")
    assert summary.status == "DIVERGED"
    assert all(math.isfinite(step.loss) for step in steps)


def test_trajectory_noisy_at_a_tiny_learning_rate_is_complete(base: Path, tmp_path: Path) -> None:
    summary, steps = train(make_spec(base, (8,), lr=1e-9, batch=1), make_samples(), tmp_path)
    losses = [step.loss for step in steps]
    assert np.std(losses) > 0.2, "the noise that this test is about"
    assert summary.status == "COMPLETE" and summary.steps == 88


def verdict(losses: list[float], vocabulary: int = 100) -> tuple[int, str | None]:
    """Feed a curve; return (steps done, reason)."""
    curve = LossCurve(len(losses), vocabulary)
    for index, loss in enumerate(losses):
        reason = curve.add(loss, 1.0)
        if reason:
            return index + 1, reason
    return len(losses), curve.final()


@pytest.mark.parametrize("epochs", [(1,), (1, 2)])
def test_sound_epoch_at_whose_last_step_the_run_is_given_up_has_its_snapshot(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: tuple[int, ...]
) -> None:
    """The second epoch is hopeless by a rule that may speak from the middle of the run on."""
    losses = [4.3] * 5 + [3.2] * 5 + [4.6] * 86 + [4.55] * 4
    run = StepRunner.run

    def measured(*arguments: Any) -> tuple[StepDone, Any]:
        done, decision = run(*arguments)
        return dataclasses.replace(done, loss=losses[done.step - 1]), decision

    monkeypatch.setattr(StepRunner, "run", measured)
    spec = make_spec(base, epochs, layout={"zero": "auto"}, batch=1)
    summary, _ = train(spec, make_samples(100), tmp_path)
    assert (summary.steps, summary.diverged[1], [*summary.snapshots]) == (100, "", [1])
    assert epochs == (1,) or "guessing" in summary.diverged[2]


def test_curve_noise_of_any_seed_is_not_diverged() -> None:
    for seed in range(300):
        noise = np.random.default_rng(seed).normal(2.0, 0.5, size=200)
        assert verdict(list(np.abs(noise)))[1] is None, seed


def test_curve_spike_that_heals_is_not_diverged() -> None:
    falling = list(np.linspace(3, 1, 100))
    assert verdict([*falling[:40], 30.0, 12.0, 8.0, *falling[43:]])[1] is None
    assert verdict([2.0] + [14.0] * 4 + falling[5:])[1] is None


def test_curve_that_ends_half_a_nat_higher_is_diverged() -> None:
    assert verdict([2.0] * 50 + [2.49] * 50)[1] is None
    assert "ended at 2.51" in str(verdict([2.0] * 90 + [2.51] * 10)[1])


def test_curve_blown_up_within_the_first_window_is_diverged() -> None:
    assert verdict([2.0, 900.0, 50.0, 9.0] + [4.5] * 20)[1] is not None


def test_curve_explosion_is_stopped_early() -> None:
    steps, reason = verdict([2.0] * 20 + [1e6] * 80)
    assert steps < 30 and "exploded" in str(reason)


def test_curve_stuck_at_guessing_is_stopped_after_a_quarter_past_the_half() -> None:
    steps, reason = verdict([2.0] * 10 + [math.log(100)] * 90)
    assert 50 <= steps <= 60 and "no better than guessing" in str(reason)


def test_curve_short_run_is_judged_without_error() -> None:
    assert verdict([2.0])[1] is None
    assert verdict([2.0, 1.0, 1.0])[1] is None


# Refusals


@pytest.mark.parametrize("what", ["empty", "no target", "token id", "too long"])
def test_trajectory_samples_that_do_not_fit_are_refused(base: Path, tmp_path: Path, what: str) -> None:
    samples = make_samples(4)
    if what == "empty":
        empty = np.empty(0, dtype=np.int64)
        samples = Samples(empty, empty.astype(bool), np.zeros(1, dtype=np.int64), empty, empty, empty.reshape(0, 2))
    elif what == "no target":
        samples = dataclasses.replace(samples, trainable=np.zeros_like(samples.trainable))
    elif what == "token id":
        samples = dataclasses.replace(samples, tokens=samples.tokens + np.int32(VOCABULARY))
    else:
        samples = make_samples(20, longest=90)
    with pytest.raises(InvalidInput):
        train(make_spec(base), samples, tmp_path)


def test_trajectory_packing_for_a_model_without_position_ids_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    with pytest.raises(Unsupported, match="packing: false"):
        train(make_spec(tmp_path / "bloom", layout={"packing": True, "attention": "eager"}), make_samples(), tmp_path)


def test_trajectory_unknown_lora_target_is_refused_with_the_choices(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="q_proj"):
        train(make_spec(base, method="lora", lora={"targets": ["q_porj"]}), make_samples(), tmp_path)


def verdicts(losses: list[float], epochs: tuple[int, ...], steps_per_epoch: int) -> tuple[dict[int, str], int]:
    """Feed losses to the verdicts until they say stop; return the verdicts and the steps taken."""
    judged = DivergenceMonitor(epochs, steps_per_epoch, vocabulary=400)
    for step, loss in enumerate(losses, start=1):
        if judged.add(loss, 1.0):
            return judged.diverged, step
    return judged.diverged, len(losses)


def test_verdict_on_an_epoch_does_not_depend_on_how_far_the_run_goes() -> None:
    """A spike near the end of epoch 1 that heals in epoch 2."""
    losses = [3.0] * 190 + [30.0] * 10 + [3.0] * 1800
    short, _ = verdicts(losses[:200], (1,), 200)
    long, steps = verdicts(losses, (1, 10), 200)
    assert short[1] and short[1] == long[1]
    assert (long[10], steps) == ("", 2000)


def test_run_stops_early_only_when_every_snapshot_ahead_has_diverged() -> None:
    losses = [3.0] * 100 + [60.0] * 900
    judged, steps = verdicts(losses, (1, 2, 5, 10), 100)
    assert judged[1] == ""
    assert all(judged[epoch] for epoch in (2, 5, 10))
    assert 100 < steps < 1000


def test_loss_that_is_not_finite_stops_at_once() -> None:
    judged, steps = verdicts([3.0] * 7 + [float("inf")] + [3.0] * 92, (1, 2), 50)
    assert steps == 8
    assert "not finite" in judged[1] and "not finite" in judged[2]
