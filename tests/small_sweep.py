"""A sweep over the offline world that trains and scores in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from massive_sft import tiny


def one_training(folder: Path, epochs: int = 10, batch: int = 8) -> Path:
    """Write a sweep of one training of many short steps, full tuning to the last epoch, and nothing to score."""
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": batch},
        "full": {"method": "full", "lr": 1e-3},
    }
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant"}
    block |= {"horizon": epochs, "snapshots": [epochs]}
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": []}
    mixtures = {"one": {"each": "facts", "samples": 96}}
    return small_sweep(folder, mixtures=mixtures, settings=settings, blocks=[block], **nothing)


def small_sweep(folder: Path, **changes: Any) -> Path:
    """Build the offline world in ``folder`` and write a sweep file of one model, one dataset, full tuning and LoRA."""
    world = tiny.build(folder / "world")
    file = {
        "schema": 1,
        "name": "small",
        "models": {"llama": {"path": str(world.models["tiny-llama"])}},
        "datasets": {
            "facts": {"path": str(world.datasets["facts"]), "format": "alpaca"},
            "arith": {"path": str(world.datasets["arith"]), "format": "messages"},
        },
        "mixtures": {"one": {"each": "facts", "samples": 24}},
        "settings": {
            "defaults": {"max_length": 128, "precision": "fp32", "batch": 8},
            "full": {"method": "full", "lr": 1e-3},
            "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
        },
        "blocks": [
            {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"]}
            | {"schedule": "constant", "horizon": 2, "snapshots": [1, 2]}
        ],
        "evaluation": {
            "protocol": {"dtype": "fp32"},
            "tasks": [{"path": str(world.tasks[name]), "limit": 12} for name in ("facts_mc", "facts_gen")],
        },
        "measures": ["perplexity", "layer_change", "token_length"],
        "storage": {"root": str(folder / "ledger")},
    } | changes
    path = folder / "sweep.yaml"
    with path.open("w") as text:
        YAML(typ="safe").dump(file, text)
    return path
