"""The shape of a base model: from its configuration, a table of well-known models, or the size in its name."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from massive_sft.core.errors import InvalidInput
from massive_sft.sweep import weight_files
from massive_sft.sweep.schema import Model

Source = Literal["config", "known", "name"]

# Families whose MLP has two matrices; the others have a gate, so three.
_UNGATED = frozenset({"gpt_neox", "gpt2", "gptj", "opt", "bloom", "falcon", "phi", "gpt_bigcode", "starcoder2", "mpt"})
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_size, vocabulary: as in the model's configuration.
        tied: whether the LM head is the embedding.
        gated: whether the MLP has a gate.
        parameters: numbers of weights, shared ones once.
        source: ``config`` (its own files), ``known`` (the table that ships), ``name`` (guessed from the size in it).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    gated: bool
    parameters: int
    source: Source

    @property
    def key(self) -> str:
        """What measurements are shared by: models of one shape are equally fast."""
        kind = f"{self.heads}-{self.kv_heads}x{self.head_size}"
        return f"{self.layers}x{self.hidden}x{self.intermediate}h{kind}v{self.vocabulary}"

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.vocabulary * self.hidden

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with, the LM head aside."""
        return max(self.parameters - self.head * (1 if self.tied else 2), 1)

    def adapter(self, rank: int) -> int:
        """Return the weights of a LoRA adapter of all linear modules: rank × (inputs + outputs) of each."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        mlp = (3 if self.gated else 2) * (self.hidden + self.intermediate)
        return rank * self.layers * (attention + mlp)


def shape_of(model: Model) -> ModelShape | None:
    """Return a base model's shape, or None where neither its files nor its name tell; reads small files only."""
    folder = Path(model.path) if model.path is not None else _cached_folder(str(model.hub), model.revision)
    known = _from_folder(folder) if folder is not None else None
    if known is None and model.hub is not None:
        known = known_models().get(model.hub)
    return known or _from_name(model.hub or Path(str(model.path)).name)


def _cached_folder(hub: str, revision: str) -> Path | None:
    """Return where the hub's cache keeps a revision of a model, if it does (its documented layout)."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{hub.replace('/', '--')}"
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _from_folder(folder: Path) -> ModelShape | None:
    """Read ``config.json``, and the count of weights from the headers of the weight files; None where that fails."""
    try:
        shape = shape_from_config(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with a model's files is for `check` to say
    counted = _stored_weights(folder)
    return shape if counted is None else replace(shape, parameters=counted)


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape in a configuration of transformers. Raises KeyError, TypeError or ValueError for another."""
    config = config.get("text_config", config)

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    hidden, heads = int(first("hidden_size", "n_embd", "d_model")), int(first("num_attention_heads", "n_head"))
    shape = ModelShape(
        layers=int(first("num_hidden_layers", "n_layer")),
        hidden=hidden,
        intermediate=int(first("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden),
        heads=heads,
        kv_heads=int(first("num_key_value_heads") or heads),
        head_size=int(first("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", True)),
        gated=config.get("model_type") not in _UNGATED,
        parameters=0,
        source="config",
    )
    return replace(shape, parameters=count_weights(shape))


def count_weights(shape: ModelShape) -> int:
    """Return the weights of a decoder of this shape: embeddings, attention, MLP and norms (biases left out)."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = 2 * shape.hidden * queries + 2 * shape.hidden * keys
    mlp = (3 if shape.gated else 2) * shape.hidden * shape.intermediate
    layers = shape.layers * (attention + mlp + 2 * shape.hidden)
    return layers + shape.hidden + shape.head * (1 if shape.tied else 2)


def _stored_weights(folder: Path) -> int | None:
    """Return how many numbers the safetensors files hold, by their headers; None without any, or with a broken one."""
    try:
        files = weight_files.find(folder)
        if any(file.suffix != ".safetensors" for file in files):
            return None
        tensors = (tensor for file in files for tensor in weight_files.read_header(file).values())
        return sum(math.prod(tensor["shape"]) for tensor in tensors) or None
    except (InvalidInput, OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with them is for the plan's contents to say


@functools.cache
def known_models() -> dict[str, ModelShape]:
    """Return the shapes of well-known public models by hub id."""
    table = json.loads((Path(__file__).parent / "known_models.json").read_text())
    shapes = {
        name: ModelShape(**dict(zip(table["columns"], row, strict=True)), parameters=0, source="known")
        for name, row in table["models"].items()
    }
    return {name: replace(shape, parameters=count_weights(shape)) for name, shape in shapes.items()}


def _from_name(name: str) -> ModelShape | None:
    """Guess from a size in a name (``7B``, ``135M``): the shape of the known model that comes closest to it."""
    sizes = _SIZE.findall(name.replace("_", "-"))
    if not sizes:
        return None
    number, unit = sizes[-1]
    wanted = int(float(number) * (1e9 if unit in "bB" else 1e6))
    closest = min(known_models().values(), key=lambda shape: abs(shape.parameters - wanted))
    return replace(closest, parameters=wanted, source="name") if wanted else None
