"""The training stage: from a planned run to published snapshots and the outcome that says so."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from massive_sft import modeling
from massive_sft.files import write_json
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.store import Ledger
from massive_sft.plan import RunPlan, token_key
from massive_sft.samples import Samples
from massive_sft.sft.cache import load_or_build
from massive_sft.sft.data import Counts, build_samples
from massive_sft.sft.divergence import LossCurve
from massive_sft.sft.engine import is_first_rank
from massive_sft.sft.events import Event
from massive_sft.sft.loop import TrainingSummary, train_trajectory
from massive_sft.stages.outcome import LOSSES, OUTCOME, read_losses
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.spec import TrainingSpec


def training_spec(run: RunPlan) -> TrainingSpec:
    """Return what the training of a planned run needs to know."""
    recipe = run.trajectory.recipe
    return TrainingSpec(
        trajectory=run.trajectory.id,
        model=recipe.model,
        mixture=recipe.mixture,
        setting=recipe.setting,
        schedule=recipe.schedule,
        horizon=recipe.horizon,
        snapshots=run.trajectory.snapshots,
        layout=run.layout,
    )


def samples_of(run: RunPlan, ledger: Ledger) -> tuple[Samples, Counts]:
    """Return a run's training samples and their counts, from the token cache or built into it."""
    recipe = run.trajectory.recipe
    return load_or_build(ledger.cache_dir("tokens"), token_key(recipe), lambda: build_recipe_samples(recipe)[:2])


def build_recipe_samples(recipe: Recipe) -> tuple[Samples, Counts, Any]:
    """Build a recipe's training samples without any cache; return them, their counts and the tokenizer."""
    tokenizer = modeling.load_tokenizer(recipe.model)
    return *build_samples(recipe.mixture, recipe.setting, tokenizer), tokenizer


def train(run: RunPlan, ledger: Ledger, attempt: Attempt, report: Callable[[Event], None]) -> None:
    """Train a run under an attempt and publish its snapshots, then its outcome.

    In a process group every rank calls it with the same arguments; rank 0 writes, reports and publishes.

    Raises:
        LeaseLost: another attempt owns the trajectory; what it publishes counts.
        InvalidInput, OutOfMemory, OSError: as ``train_trajectory``.
    """
    samples, counts = samples_of(run, ledger)
    summary = train_trajectory(training_spec(run), samples, attempt.folder, report)
    if not is_first_rank():
        return
    ledger.write_spec(run.trajectory.id, {key: json.loads(text) for key, text in run.trajectory.recipe.parts.items()})
    for epoch in sorted(summary.snapshots):
        attempt.publish(f"snapshots/epoch-{epoch}")
    last = run.trajectory.epochs
    folder = attempt.folder / "training" / f"epoch-{last}"
    folder.mkdir(parents=True)
    os.rename(attempt.folder / LOSSES, folder / LOSSES)
    steps_per_epoch = -(-len(samples) // run.trajectory.recipe.setting.batch)
    outcome = {
        "schema": 1,
        "attempt": attempt.number,
        "summary": _plain(summary),
        "counts": counts.model_dump(mode="json"),
        "layout": run.layout.model_dump(mode="json"),
        "diverged": _verdicts(read_losses(folder / LOSSES), run.trajectory.snapshots, steps_per_epoch, summary),
    }
    write_json(folder / OUTCOME, outcome)
    attempt.publish(f"training/epoch-{last}")


def _plain(summary: TrainingSummary) -> dict[str, Any]:
    """Return a summary as JSON values: folders left out (they are where they are published), NaN as None."""
    values = {key: value for key, value in asdict(summary).items() if key != "snapshots"}
    return {key: None if value != value else value for key, value in values.items()}


def _verdicts(
    losses: list[dict[str, Any]], epochs: tuple[int, ...], steps_per_epoch: int, summary: TrainingSummary
) -> dict[str, str]:
    """Return, by epoch as text, why the run had diverged by then; empty when it had not."""
    verdicts = {}
    for epoch in epochs:
        steps = epoch * steps_per_epoch
        if steps > len(losses) or not all(_is_finite(step) for step in losses[:steps]):
            verdicts[str(epoch)] = summary.reason or "the run ended before this epoch"
        else:
            curve = LossCurve(steps, summary.vocabulary)
            curve.losses = [step["loss"] for step in losses[:steps]]
            verdicts[str(epoch)] = curve.final() or ""
    return verdicts


def _is_finite(step: Mapping[str, Any]) -> bool:
    return math.isfinite(float(step["loss"])) and math.isfinite(float(step["grad_norm"]))
