"""The measuring stage: perplexity and token length of a run's training data, and layer change of its snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from massive_sft import modeling
from massive_sft.cell import Cell, Recipe
from massive_sft.errors import Corrupt
from massive_sft.evaluate.perplexity import perplexity, token_length
from massive_sft.evaluate.weights import load_scored
from massive_sft.files import read_json
from massive_sft.fingerprint import digest, hash_file
from massive_sft.ledger import Ledger
from massive_sft.plan import RunPlan, token_key
from massive_sft.stages.training import samples_of

LAYERS = "layers.parquet"


def measure_data(name: str, run: RunPlan, ledger: Ledger) -> dict[str, Any]:
    """Return a measure of a run's training data: ``perplexity`` under the base model, or ``token_length``.

    Perplexities are kept in the ledger's cache by data and base weights: the runs of one mixture share them.
    """
    if name == "token_length":
        return token_length(samples_of(run, ledger)[0])
    recipe = run.trajectory.recipe
    folder = ledger.cache_dir("perplexity") / digest(
        token_key(recipe) + recipe.parts["base"] + recipe.setting.precision
    )
    try:
        known: dict[str, Any] = read_json(folder / "perplexity.json")
        return known
    except (FileNotFoundError, Corrupt):
        pass
    samples, _ = samples_of(run, ledger)
    model = load_scored(recipe.model, None, recipe.setting.precision, device=modeling.best_device())
    result = perplexity(model, samples)
    result.save(folder)
    return result.summary()


def measure_layers(cell: Cell, recipe: Recipe, snapshot: Path, ledger: Ledger) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare a snapshot with the weights that training began from; write the table beside the cell.

    Returns:
        The summary by layer and kind of module, and the SHA-256 of the table by path below the storage root.
    """
    from massive_sft import layers

    table = layers.layer_change(recipe.model, snapshot, recipe.setting.precision)
    path = ledger.cell_dir(cell.id) / LAYERS
    layers.write_table(table, path)
    return layers.summary(table), {path.relative_to(ledger.root).as_posix(): hash_file(path)}
