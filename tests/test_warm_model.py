"""Weights that stay in memory, of scored cells and of trainings: bit by bit those of a model that is loaded anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import evaluation_world as world
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_training import make_base, make_samples, make_spec

from massive_sft.core import memory
from massive_sft.evaluation.requests import Generation, Likelihood, Request
from massive_sft.evaluation.tree import TreeScorer
from massive_sft.models import pretrained
from massive_sft.models.kept_base import KeptBase
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.warm_model import WarmModel
from massive_sft.sweep.schema import Model
from massive_sft.training.loop import train_trajectory

ASKED: list[Request] = [
    *(Likelihood(i, i, 0, "", 1, "Question: red? " * i, " the long yellow road") for i in range(6)),
    Generation(6, 6, 0, "", 1, "two cats", (), 12),
]
MAKE: Mapping[str, Callable[..., Any]] = {"llama": world.llama, "gpt2": world.gpt2}
LLAMA = pytest.mark.parametrize("family", ["llama"], indirect=True)


def adapter(made: Any, folder: Path, seed: int, rank: int = 4) -> Path:
    """Write a LoRA adapter whose every weight counts."""
    torch.manual_seed(seed)
    is_gpt2 = made.config.model_type == "gpt2"
    config = LoraConfig(
        r=rank, target_modules=["c_attn"] if is_gpt2 else ["q_proj", "up_proj"], fan_in_fan_out=is_gpt2,
        init_lora_weights=False,
    )  # fmt: skip
    get_peft_model(made, config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=MAKE)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, dict[str, Path]]:
    """A base and snapshots of it: adapters, one of another rank, and whole models."""
    folder, make = tmp_path_factory.mktemp(request.param), MAKE[request.param]
    make().save_pretrained(folder / "base")
    world.tokenizer().save_pretrained(folder / "base")
    snapshots = {f"lora {seed}": adapter(make(), folder / f"lora-{seed}", seed) for seed in (1, 2)}
    snapshots["lora of rank 2"] = adapter(make(), folder / "rank", 3, rank=2)
    for seed in (5, 6):
        snapshots[f"full {seed}"] = folder / f"full-{seed}"
        make(seed=seed).save_pretrained(snapshots[f"full {seed}"])
    return Model(path=str(folder / "base")), snapshots


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The folders of models that were built from their files."""
    load, folders = pretrained.load_model, list[str]()

    def loaded(model: Model, *arguments: Any) -> Any:
        folders.append(Path(str(model.path)).name)
        return load(model, *arguments)

    monkeypatch.setattr(pretrained, "load_model", loaded)
    yield folders


def answers(model: Any) -> list[Any]:
    return TreeScorer(model, world.tokenizer()).score(ASKED)[0]


def anew(model: Model, snapshot: Path | None, dtype: str, adapters: str = "unmerged") -> list[Any]:
    return answers(load_for_scoring(model, snapshot, dtype, adapters))


@pytest.mark.parametrize(("dtype", "adapters"), [("fp32", "unmerged"), ("fp32", "merged"), ("bf16", "unmerged")])
def test_scores_of_a_warm_model_are_those_of_one_that_is_loaded_anew(
    family: tuple[Model, dict[str, Path]], built: list[str], dtype: str, adapters: str, caplog: Any
) -> None:
    model, snapshots = family
    order = ["base", "lora 1", "lora 2", "lora of rank 2", "full 5", "full 6", "lora 2", "full 5", "base", "lora 1"]
    warm, seen = WarmModel(), dict[str, list[Any]]()
    for name in order:
        found = answers(warm.load(model, snapshots.get(name), dtype, adapters))
        if name not in seen:
            seen[name] = anew(model, snapshots.get(name), dtype, adapters)
        assert found == seen[name], name
    assert len({str(one) for one in seen.values()}) == len(seen)
    # Once for its first cell, and once after full snapshots; from then on it is kept, though they are copied over it.
    assert len(built) == len(seen) + 2
    assert not caplog.records


@LLAMA
def test_memory_that_is_scarce_has_the_base_read_again(
    family: tuple[Model, dict[str, Path]], built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 10 kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    model, snapshots = family
    warm = WarmModel()
    for name in ["base", "full 5", "base", "full 5", "base"]:
        assert answers(warm.load(model, snapshots.get(name), "fp32")) == anew(model, snapshots.get(name), "fp32"), name
    assert built.count("base") == 3 + 3
    bases = KeptBase()
    for _ in range(2):
        bases.load(model, "fp32", "auto", False, False)
    assert built.count("base") == 3 + 3 + 2


class Scarce(Mapping[str, torch.Tensor]):
    """Tensors for which memory runs out."""

    def __getitem__(self, name: str) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __init__(self, names: list[str]):
        self.names = names


@LLAMA
@pytest.mark.parametrize("fault", ["a weight of the base moved", "memory ran out", "the adapter lacks a tensor"])
def test_change_that_cannot_be_proven_is_given_up_for_a_load_and_said(
    family: tuple[Model, dict[str, Path]], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, snapshots = family
    warm = WarmModel()
    there = warm.load(model, snapshots["lora 1"], "fp32")
    tensors: Any = load_file(snapshots["lora 2"] / "adapter_model.safetensors")
    if fault == "a weight of the base moved":
        with torch.no_grad():
            next(weight for name, weight in there.named_parameters() if "base_layer" in name).view(-1)[0].add_(1)
    elif fault == "memory ran out":
        tensors = Scarce(list(tensors))
    else:
        tensors.pop(min(tensors))
    warm.offer(snapshots["lora 2"], tensors)
    found = answers(warm.load(model, snapshots["lora 2"], "fp32"))
    assert found == anew(model, snapshots["lora 2"], "fp32")
    said = {
        "a weight": "answers a fixed request otherwise",
        "memory r": "out of memory",
        "the adap": "tensors are others",
    }
    assert said[fault[:8]] in caplog.text and "is loaded anew" in caplog.text
    caplog.clear()
    assert answers(warm.load(model, snapshots["lora 1"], "fp32")) == anew(model, snapshots["lora 1"], "fp32")
    assert not caplog.records


@LLAMA
def test_other_base_other_precision_and_snapshot_of_another_form_are_loaded(
    family: tuple[Model, dict[str, Path]], built: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.llama(seed=7).save_pretrained(tmp_path / "other")
    other = Model(path=str(tmp_path / "other"))
    model, _ = family
    warm = WarmModel()
    for base, dtype in [(model, "fp32"), (model, "bf16"), (other, "bf16"), (other, "bf16")]:
        assert answers(warm.load(base, None, dtype)) == anew(base, None, dtype)
    assert len(built) == 3 + 4
    world.llama(seed=8).save_pretrained(tmp_path / "other")
    assert answers(warm.load(other, None, "bf16")) == anew(other, None, "bf16")
    world.llama(seed=9, num_hidden_layers=3).save_pretrained(tmp_path / "deeper")
    caplog.set_level(logging.WARNING)
    assert answers(warm.load(other, tmp_path / "deeper", "bf16")) == anew(other, tmp_path / "deeper", "bf16")
    assert "its configuration is another one" in caplog.text


def trained(base: Path, folder: Path, bases: KeptBase | None, **setting: Any) -> dict[str, torch.Tensor]:
    spec = make_spec(base, (1,), **setting)
    train_trajectory(spec, make_samples(), folder, lambda event: None, bases=bases)
    (file,) = (folder / "snapshots" / "epoch-1").glob("*.safetensors")
    return load_file(file)


def test_trainings_on_copies_of_one_base_are_those_on_bases_that_were_loaded(tmp_path: Path, built: list[str]) -> None:
    base, bases = make_base(tmp_path / "base", "qwen2"), KeptBase()
    orders: list[dict[str, Any]] = [{}, {"method": "lora"}, {"seed": 1}]
    for number, setting in enumerate(orders):
        found = trained(base, tmp_path / f"kept-{number}", bases, **setting)
        expected = trained(base, tmp_path / f"loaded-{number}", None, **setting)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert len(built) == 1 + len(orders)
    trained(base, tmp_path / "bf16", bases, precision="bf16", layout={"zero": "auto"})
    make_base(base, "qwen2", spread=2.0)
    changed = trained(base, tmp_path / "changed", bases, precision="bf16", layout={"zero": "auto"})
    assert len(built) == 1 + len(orders) + 2
    expected = trained(base, tmp_path / "loaded", None, precision="bf16", layout={"zero": "auto"})
    assert all(torch.equal(changed[name], expected[name]) for name in changed)
