"""Which weights decay: by the rule of transformers' Trainer, and exactly as plain AdamW does it, at every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import CONFIGS, make_base, make_samples, make_spec, tiny_config, train
from transformers import AutoModelForCausalLM, Trainer

from massive_sft.sweep.schema import Optimizer
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import batches
from massive_sft.training.loading import load_for_training
from massive_sft.training.optimizer import parameter_groups

DECAY = {"weight_decay": 0.5, "eps": 1e-4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases and norms."""
    return make_base(tmp_path_factory.mktemp("base") / "neox", "neox")


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_matrices_are_what_the_trainer_of_transformers_decays(family: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(family))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, others = parameter_groups(model, Optimizer(weight_decay=0.1))
    assert {names[id(p)] for p in decaying["params"]} == set(Trainer.get_decay_parameter_names(None, model)) & set(
        names.values()
    )
    assert others["weight_decay"] == 0.0 and "weight_decay" not in decaying


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": {"weight_decay": 0.0}}, {"optimizer": {**DECAY, "decay": "all"}}, {"method": "lora"}],
    ids=["no decay", "all", "lora"],
)
def test_one_group_where_nothing_is_told_apart(base: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(base, **{"optimizer": DECAY, **changes})
    model = load_for_training(spec, make_samples())
    assert len(parameter_groups(model, spec.setting.optimizer)) == 1


def plain(spec: TrainingSpec, groups: list[dict[str, Any]], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Train as a few lines of PyTorch do; return the weights."""
    samples, setting = make_samples(), spec.setting
    optimizer = torch.optim.AdamW(groups, lr=setting.lr, eps=setting.optimizer.eps, weight_decay=0.5)
    for epoch in (1, 2):
        order = batches.epoch_order(len(samples), setting.seed, epoch)
        for step in range(3):
            spans = [samples[int(index)] for index in batches.batch_of(order, setting.batch, step)]
            targets = sum(int(span[1].sum()) for span in spans)
            for span in spans:
                ids, mask = torch.from_numpy(span[0].astype(np.int64)), torch.from_numpy(span[1])
                logits = model(input_ids=ids[None]).logits[0, :-1]
                losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
                (losses[mask[1:]].sum() / targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.named_parameters())


@pytest.fixture(scope="module")
def expected(base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights by what decays."""
    found = {}
    for decay in ("matrices", "all"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        names = set(Trainer.get_decay_parameter_names(None, model)) if decay == "matrices" else None
        decaying = [p for name, p in model.named_parameters() if names is None or name in names]
        rest = [p for name, p in model.named_parameters() if names is not None and name not in names]
        groups = [{"params": decaying}, *([{"params": rest, "weight_decay": 0.0}] if rest else [])]
        found[decay] = plain(make_spec(base, (2,), optimizer=DECAY, lr=1e-2), groups, model)
    return found


@torch.no_grad()
def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two weights."""
    return max(float((one[name] - weight).abs().max()) for name, weight in other.items())


@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_decay_is_that_of_plain_adamw_at_every_stage(
    base: Path, expected: dict[str, dict[str, torch.Tensor]], tmp_path: Path, zero: int, decay: str
) -> None:
    spec = make_spec(base, (2,), layout={"zero": zero}, lr=1e-2, optimizer={**DECAY, "decay": decay})
    train(spec, make_samples(), tmp_path)
    snapshot = AutoModelForCausalLM.from_pretrained(tmp_path / "snapshots" / "epoch-2", dtype=torch.float32)
    trained = dict(snapshot.named_parameters())
    assert distance(trained, expected[decay]) < 2e-5
    assert distance(trained, expected["all" if decay == "matrices" else "matrices"]) > 1e-3
