"""A sweep over the offline world that trains and scores in seconds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from shared import made_once

from massive_sft import tiny

LAYERS = 2


def one_training(folder: Path, epochs: int = 10, batch: int = 4) -> Path:
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


def one_lora(folder: Path, **changes: Any) -> Path:
    """Write a sweep of one adapter of two epochs, which measures nothing."""
    settings = {
        "defaults": {"max_length": 128, "precision": "fp32", "batch": 32},
        "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
    }
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora"}
    block |= {"schedule": "constant", "horizon": 2, "snapshots": [1, 2]}
    return small_sweep(folder, **{"settings": settings, "blocks": [block], "measures": []} | changes)


def copy_world(folder: Path) -> None:
    """Make what ``tiny.build`` makes in ``folder``: a copy of the session's first one, whose files name its paths."""
    first = made_once("world", _build)
    shutil.copytree(first, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for file in folder.rglob("*.yaml"):
        file.write_text(file.read_text().replace(str(first), str(folder)))


def _build(folder: Path) -> None:
    """Build the world, its models cut to two layers of four: half the time, and what tests check hangs on no depth."""
    from safetensors.torch import load_file, save_file

    for model in tiny.build(folder).models.values():
        config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
        (model / "config.json").write_text(json.dumps(config))
        weights = load_file(model / "model.safetensors")
        layer = {name: re.search(r"\.layers\.(\d+)\.", name) for name in weights}
        kept = {name: weights[name] for name, found in layer.items() if found is None or int(found[1]) < LAYERS}
        save_file(kept, model / "model.safetensors", {"format": "pt"})


def small_sweep(folder: Path, **changes: Any) -> Path:
    """Put the offline world in ``folder`` and write a sweep file of one model, one dataset, full tuning and LoRA."""
    world = folder / "world"
    copy_world(world)
    file = {
        "schema": 1,
        "name": "small",
        "models": {"llama": {"path": str(world / "models" / "tiny-llama")}},
        "datasets": {
            "facts": {"path": str(world / "data" / "facts.jsonl"), "format": "alpaca"},
            "arith": {"path": str(world / "data" / "arith.jsonl"), "format": "messages"},
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
            "tasks": [
                {"path": str(world / "tasks" / f"{name}.yaml"), "limit": 12} for name in ("facts_mc", "facts_gen")
            ],
        },
        "measures": ["perplexity", "layer_change", "token_length"],
        "storage": {"root": str(folder / "ledger")},
    } | changes
    path = folder / "sweep.yaml"
    with path.open("w") as text:
        YAML(typ="safe").dump(file, text)
    return path
