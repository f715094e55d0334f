"""The measuring stage: a run's training data, the layer change of its snapshots, and texts under any cell's model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.encoding import special_tokens
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.ledger.paths import cell_key, texts_file
from massive_sft.ledger.store import Ledger
from massive_sft.measures import layer_change
from massive_sft.measures.perplexity import load_summary, perplexity
from massive_sft.measures.texts import read_texts, text_likelihoods
from massive_sft.measures.token_length import token_length
from massive_sft.models.device import device_of
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.models.warm_model import WarmModel
from massive_sft.planning.plan import RunPlan, perplexity_key
from massive_sft.planning.requirements import Requirement
from massive_sft.running.samples import samples_of
from massive_sft.sweep.cell import Cell, Recipe
from massive_sft.sweep.schema import Protocol
from massive_sft.sweep.unchanged_files import require_same_model

LAYERS = "layers.parquet"


def measure_texts(
    asked: Requirement,
    cell: Cell,
    snapshot: Path | None,
    protocol: Protocol,
    ledger: Ledger,
    stop: Callable[[], bool],
    gpu: bool,
    warm: WarmModel,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return how likely a cell's model holds a set of texts, and write the table of texts beside the cell.

    Args:
        asked: of texts.
        snapshot: its verified folder; None for the base model.
        protocol: by which the cell is scored.

    Returns:
        As ``TextLikelihoods.summary``, and the SHA-256 of the table by path below the storage root.

    Raises:
        InvalidInput: the texts or the base model are no longer those that were planned.
        Interrupted: ``stop`` said so.
        Unsupported: a text has a token that the model has no embedding for.
    """
    texts = asked.texts
    assert texts is not None
    if f"sha256:{hash_file(texts.path)}" != texts.content:
        raise InvalidInput(Problem("measures", "holds other texts than when the run was planned", str(texts.path)))
    read = read_texts(texts.path, texts.column, texts.limit, "measures")
    require_same_model(cell.model, cell.base)
    model = warm.load(cell.model, snapshot, protocol.dtype, protocol.adapters, device_of(gpu))
    measured = text_likelihoods(PlainScorer(model, load_tokenizer(cell.model), ends=()), read, stop)
    require_same_model(cell.model, cell.base)
    data, name = measured.to_parquet(), texts_file(asked.id)
    ledger.cell(cell.id).put(name, data)
    return measured.summary(), {f"{cell_key(cell.id)}/{name}": hashlib.sha256(data).hexdigest()}


def measure_data(
    name: str, run: RunPlan, ledger: Ledger, seconds: dict[str, float], gpu: bool, warm: WarmModel
) -> dict[str, Any]:
    """Return a measure of a run's training data: ``perplexity`` under the base model, or ``token_length``.

    Perplexities are kept in the ledger's cache by data and base weights: the runs of one mixture share them.

    Args:
        seconds: gets, by the measure's name, what a model's work for it took; nothing for what was there.
        gpu: whether the model is put on a GPU.
        warm: loads the base, where it does not hold it from the cell before.

    Raises InvalidInput when the base model or the data are no longer those that were planned.
    """
    if name == "token_length":
        return token_length(samples_of(run, ledger)[0])
    recipe = run.trajectory.recipe
    place = ledger.storage.at(f"cache/perplexity/{perplexity_key(recipe)}")
    known = load_summary(place)
    if known is not None:
        return known
    began = time.perf_counter()
    samples, _ = samples_of(run, ledger)
    require_same_model(recipe.model, recipe.parts["base"])
    model = warm.load(recipe.model, None, recipe.setting.precision, device=device_of(gpu))
    result = perplexity(model, samples, special_tokens(load_tokenizer(recipe.model)))
    require_same_model(recipe.model, recipe.parts["base"])
    result.save(place)
    seconds[name] = time.perf_counter() - began
    return result.summary()


def measure_layers(
    cell: Cell, recipe: Recipe, snapshot: Path, ledger: Ledger, gpu: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare a snapshot with the weights that training began from; write the table of tensors beside the cell.

    Args:
        gpu: whether a GPU computes it.

    Returns:
        Relative change over all weights and by layer, what rounding alone makes of it, how many weights changed (of an
        adapter: those that its product is not 0 for); and the SHA-256 of the table by path below the storage root.
    """
    table = layer_change.layer_change(recipe.model, snapshot, device_of(gpu))
    require_same_model(recipe.model, recipe.parts["base"])
    data = layer_change.to_parquet(table)
    ledger.cell(cell.id).put(LAYERS, data)
    return layer_change.summary(table), {f"{cell_key(cell.id)}/{LAYERS}": hashlib.sha256(data).hexdigest()}
