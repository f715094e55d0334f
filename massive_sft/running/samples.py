"""A run's training samples, from its sources or from the token cache. Who tokenises alone imports no more than this."""

from __future__ import annotations

from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.cache import load_or_build
from massive_sft.data.mixture import Counts, build_samples
from massive_sft.data.samples import Samples
from massive_sft.ledger.store import Ledger
from massive_sft.models.configuration import load_config
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.planning.plan import RunPlan, token_key
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.unchanged_files import require_same_data, require_same_model


def samples_of(run: RunPlan, ledger: Ledger) -> tuple[Samples, Counts]:
    """Return a run's training samples and their counts, from the token cache or built into it.

    Raises InvalidInput when data or tokenizer are no longer those that were planned, when the samples hold a token
    that the model has no embedding of, and as ``data.build_samples``.
    """
    recipe = run.trajectory.recipe

    def build() -> tuple[Samples, Counts]:
        _require_same_sources(recipe)
        samples, counts, _ = build_recipe_samples(recipe)
        _require_same_sources(recipe)
        return samples, counts

    samples, counts = load_or_build(ledger.cache_dir("tokens"), token_key(recipe), build)
    _require_vocabulary(recipe, int(samples.tokens.max()))
    return samples, counts


def _require_vocabulary(recipe: Recipe, largest: int) -> None:
    vocabulary = getattr(load_config(recipe.model).get_text_config(), "vocab_size", None)
    if vocabulary is not None and largest >= vocabulary:
        rule = f"has {vocabulary} tokens, but its tokenizer makes token {largest} of {recipe.mixture.name}"
        raise InvalidInput(Problem(f"models.{recipe.model_name}", f"{rule}: they do not belong together"))


def _require_same_sources(recipe: Recipe) -> None:
    require_same_model(recipe.model, recipe.parts["base"])
    require_same_data(recipe)


def build_recipe_samples(recipe: Recipe) -> tuple[Samples, Counts, Any]:
    """Build a recipe's training samples without any cache; return them, their counts and the tokenizer."""
    tokenizer = load_tokenizer(recipe.model)
    return *build_samples(recipe.mixture, recipe.setting, tokenizer), tokenizer
