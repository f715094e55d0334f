"""The training stage: from a planned run to published snapshots and the outcome that says so."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from massive_sft import modeling
from massive_sft.errors import Corrupt, InvalidInput, Problem
from massive_sft.files import write_json
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.store import Ledger
from massive_sft.plan import RunPlan, token_key
from massive_sft.samples import Samples
from massive_sft.sft import peak
from massive_sft.sft.cache import load_or_build
from massive_sft.sft.checkpoint import Checkpoints
from massive_sft.sft.data import Counts, build_samples
from massive_sft.sft.engine import warm_up
from massive_sft.sft.events import Event
from massive_sft.sft.loop import TrainingSummary, train_trajectory
from massive_sft.sft.ranks import from_first_rank, is_first_rank
from massive_sft.stages.outcome import LOSSES, OUTCOME, has_spent_checkpoint, read_losses
from massive_sft.stop import never
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.sweep.unchanged import require_same_data, require_same_model


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
    vocabulary = getattr(modeling.load_config(recipe.model).get_text_config(), "vocab_size", None)
    if vocabulary is not None and largest >= vocabulary:
        rule = f"has {vocabulary} tokens, but its tokenizer makes token {largest} of {recipe.mixture.name}"
        raise InvalidInput(Problem(f"models.{recipe.model_name}", f"{rule}: they do not belong together"))


def _require_same_sources(recipe: Recipe) -> None:
    require_same_model(recipe.model, recipe.parts["base"])
    require_same_data(recipe)


def build_recipe_samples(recipe: Recipe) -> tuple[Samples, Counts, Any]:
    """Build a recipe's training samples without any cache; return them, their counts and the tokenizer."""
    tokenizer = modeling.load_tokenizer(recipe.model)
    return *build_samples(recipe.mixture, recipe.setting, tokenizer), tokenizer


def train(
    run: RunPlan,
    ledger: Ledger,
    attempt: Attempt,
    report: Callable[[Event], None],
    stop: Callable[[], bool] = never,
) -> None:
    """Train a run under an attempt, on from its last checkpoint, and publish its snapshots, then its outcome.

    In a process group every rank calls it with the same arguments; rank 0 writes, reports and publishes. It may be
    called again with an attempt whose process was killed.

    Args:
        run: what is trained.
        ledger: where it is published.
        attempt: the right to.
        report: called on rank 0 with every event.
        stop: asked on rank 0 once a step; when true, training ends there with a checkpoint.

    Raises:
        Interrupted: it was stopped; called again, under any attempt, it goes on.
        LeaseLost: another attempt owns the trajectory; what it publishes counts.
        InvalidInput: the base model or the data are no longer those that were planned; and as ``train_trajectory``.
        Unsupported, LossJump, OutOfMemory, OSError: as ``train_trajectory``.
    """
    if from_first_rank(lambda: _is_published(attempt)):
        return
    warm_up(run.layout)
    began = time.perf_counter()
    gpu = run.layout.gpus > 0
    peak.begin(gpu)
    samples, counts = samples_of(run, ledger)
    checkpoints = Checkpoints(attempt.home, attempt.claim, run.resume_every)
    with _on_the_planned_base(run.trajectory.recipe, attempt):
        summary = train_trajectory(training_spec(run), samples, attempt.folder, report, checkpoints, stop)
    if is_first_rank():
        cost = {
            "wall_seconds": time.perf_counter() - began,
            "peak_bytes": peak.peak_bytes(gpu),
            "device": peak.device_name(gpu),
        }
        _publish(run, ledger, attempt, summary, counts, cost)


@contextmanager
def _on_the_planned_base(recipe: Recipe, attempt: Attempt) -> Iterator[None]:
    """Hold a training to the base model that was planned: before it begins, and before anything of it counts."""
    from_first_rank(lambda: require_same_model(recipe.model, recipe.parts["base"]))
    try:
        yield
    finally:
        if is_first_rank():
            try:
                require_same_model(recipe.model, recipe.parts["base"])
            except InvalidInput:
                attempt.remove_checkpoint()  # nothing may go on from other weights
                raise


def _is_published(attempt: Attempt) -> bool:
    """Return whether this attempt published its outcome before its process was killed; finish what comes after."""
    folder = attempt.home / _outcome_place(attempt)
    try:
        verify_folder(folder)
    except Corrupt:
        return False
    _clean_up(attempt)
    return True


def _outcome_place(attempt: Attempt) -> str:
    return f"training/attempt-{attempt.number}"


def _publish(
    run: RunPlan,
    ledger: Ledger,
    attempt: Attempt,
    summary: TrainingSummary,
    counts: Counts,
    cost: Mapping[str, Any],
) -> None:
    ledger.write_spec(run.trajectory.id, {key: json.loads(text) for key, text in run.trajectory.recipe.parts.items()})
    for epoch in sorted(summary.snapshots):
        attempt.publish(f"snapshots/epoch-{epoch}")
    relative = _outcome_place(attempt)
    folder = attempt.folder / relative
    folder.mkdir(parents=True, exist_ok=True)
    os.rename(attempt.folder / LOSSES, folder / LOSSES)
    outcome = {
        "schema": 1,
        "attempt": attempt.number,
        "counts": counts.model_dump(mode="json"),
        "layout": run.layout.model_dump(mode="json"),
        "run": {**_run_facts(summary), **cost},
        "epochs": _epochs(read_losses(folder / LOSSES), summary),
    }
    write_json(folder / OUTCOME, outcome)
    attempt.publish(relative)
    _clean_up(attempt)


def _clean_up(attempt: Attempt) -> None:
    """Remove what a finished training needs no more; a checkpoint beyond what was asked for stays."""
    if has_spent_checkpoint(attempt.home):
        attempt.remove_checkpoint()
    attempt.clean_up()


def _run_facts(summary: TrainingSummary) -> dict[str, Any]:
    """Return what is true of the whole run rather than of a snapshot along it."""
    return {
        "parameters": summary.parameters,
        "trained_parameters": summary.trained_parameters,
        "micro_batch": summary.micro_batch,
        "attention": summary.attention,
        "run_steps": summary.steps,
        "run_seconds": summary.seconds,
        "resumed": [dict(entry) for entry in summary.resumed],
    }


def _epochs(losses: list[dict[str, Any]], summary: TrainingSummary) -> dict[str, dict[str, Any]]:
    """Return, by snapshot epoch as text, what training up to there took and gave; ``diverged`` is empty or why."""
    found = {}
    for epoch, reason in summary.diverged.items():
        steps = [step for step in losses if step["epoch"] <= epoch]
        values = [float(step["loss"]) for step in steps]
        window = max(5, math.ceil(0.05 * len(values)))
        found[str(epoch)] = {
            "diverged": reason,
            "steps": len(steps),
            "tokens": sum(step["tokens"] for step in steps),
            "trainable_tokens": sum(step["trainable_tokens"] for step in steps),
            "seconds": sum(step["seconds"] for step in steps),
            "first_loss": _finite(fmean(values[:window])),
            "last_loss": _finite(fmean(values[-window:])),
        }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
