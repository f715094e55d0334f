"""Training one trajectory: load, train epoch by epoch, write snapshots, say how it went."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
import torch.distributed as dist

from massive_sft import modeling
from massive_sft.errors import InvalidInput, MassiveSFTError, Problem, Unsupported
from massive_sft.samples import Samples
from massive_sft.sft import batches, lora, packing, snapshot
from massive_sft.sft.divergence import Verdicts
from massive_sft.sft.engine import Engine, join_group, layout_problems, out_of_memory, quiet, sum_over_ranks
from massive_sft.sft.events import Event, SnapshotWritten, StepDone
from massive_sft.sft.loss import SummedLoss, packs_cleanly
from massive_sft.sft.schedule import learning_rate
from massive_sft.sweep.spec import TrainingSpec

# Tokens of a micro-batch, padding included, when it is sized automatically. On a CPU larger ones leave the caches; a
# GPU is busy with fewer than its most.
CPU_TOKENS = 2048
GPU_TOKENS = 65536


@dataclass(frozen=True)
class TrainingSummary:
    """How a trajectory went; equal on every rank but for ``seconds``.

    Attributes:
        diverged: by snapshot epoch, why the run had diverged by then; empty when it had not.
        steps: optimizer steps done.
        first_loss, last_loss: mean loss over the first and last 5 % of steps (at least 5), nats per token.
        tokens, trainable_tokens: seen in all, without padding.
        seconds: from the first step to the end, snapshots included.
        snapshots: folder by epoch.
        parameters, trained_parameters: numbers of weights.
        micro_batch: the final limit of a micro-batch, such as ``{"samples": 4}`` or ``{"tokens": 4096}``.
    """

    diverged: dict[int, str]
    steps: int
    first_loss: float
    last_loss: float
    tokens: int
    trainable_tokens: int
    seconds: float
    snapshots: dict[int, Path]
    parameters: int
    trained_parameters: int
    micro_batch: dict[str, int]

    @property
    def reason(self) -> str:
        """Why the whole run diverged; empty when it did not."""
        return self.diverged[max(self.diverged)]

    @property
    def status(self) -> Literal["COMPLETE", "DIVERGED"]:
        return "DIVERGED" if self.reason else "COMPLETE"


class OutOfMemory(MassiveSFTError):
    """Not even the smallest possible micro-batch fits, or several workers ran out of memory together."""


@dataclass
class _Run:
    """What changes while a trajectory trains: with the random states, all that a resume would need."""

    spec: TrainingSpec
    samples: Samples
    engine: Engine
    model: Any
    rank: int
    limit: packing.Limit
    verdicts: Verdicts
    steps_per_epoch: int
    step: int = 0
    tokens: int = 0
    trainable_tokens: int = 0
    snapshots: dict[int, Path] = field(default_factory=dict)


def train_trajectory(
    spec: TrainingSpec, samples: Samples, directory: Path, report: Callable[[Event], None]
) -> TrainingSummary:
    """Train one trajectory to its last snapshot epoch.

    Writes ``directory/losses.jsonl`` line by line and ``directory/snapshots/epoch-<k>/``. Under torchrun, or in an
    existing process group, every rank calls it with the same arguments; rank 0 writes and reports.

    Args:
        spec: what to train and how.
        samples: the whole training set, tokenised for this model.
        directory: of this attempt; rank 0 must be able to write to it.
        report: called on rank 0 with every step and snapshot.

    Returns:
        The summary; a run that diverges is a result, not an error.

    Raises:
        InvalidInput: when spec, samples and model do not fit together.
        OutOfMemory: when the smallest micro-batch does not fit.
        Corrupt, OSError: when a snapshot cannot be written.
    """
    _refuse(layout_problems(spec.setting, spec.layout) + _sample_problems(samples))
    with quiet():
        return _train_quietly(spec, samples, directory, report)


def _train_quietly(
    spec: TrainingSpec, samples: Samples, directory: Path, report: Callable[[Event], None]
) -> TrainingSummary:
    rank, ranks = join_group(spec.layout)
    model = _load(spec, samples)
    counts = (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad))
    loss = SummedLoss(model)
    torch.manual_seed(spec.setting.seed * ranks + rank)  # dropout differs from rank to rank
    per_epoch = batches.steps_per_epoch(len(samples), spec.setting.batch)
    verdicts = Verdicts(spec.snapshots, per_epoch, model.get_output_embeddings().weight.shape[0])
    engine = Engine(loss, spec.setting, spec.layout)
    run = _Run(spec, samples, engine, model, rank, _first_limit(spec, samples, engine, model), verdicts, per_epoch)
    began = time.perf_counter()
    try:
        with _losses_file(directory, rank) as losses:
            _train(run, directory, losses, report)
    finally:
        loss.release()
        engine.close()
    return TrainingSummary(
        verdicts.diverged,
        run.step,
        verdicts.last.start(),
        verdicts.last.end(),
        run.tokens,
        run.trainable_tokens,
        time.perf_counter() - began,
        run.snapshots,
        *counts,
        {name: value for name, value in asdict(run.limit).items() if value is not None},
    )


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InvalidInput(problems)


def _sample_problems(samples: Samples) -> list[Problem]:
    if len(samples) == 0:
        return [Problem("samples", "must not be empty")]
    trained = np.add.reduceat(samples.trainable, samples.offsets[:-1])
    if samples.lengths.min() < 2 or trained.min() == 0:
        return [Problem("samples", "must each have a trainable token", int(np.sum(trained == 0)))]
    return []


def _load(spec: TrainingSpec, samples: Samples) -> Any:
    """Load the base in the training dtype, checked against the samples, with adapters for LoRA."""
    model: Any = modeling.load_model(spec.model, spec.setting.precision, spec.layout.attention)
    place = modeling.place_of(spec.model)
    rows = model.get_input_embeddings().weight.shape[0]
    problems = []
    if samples.tokens.max() >= rows:
        problems.append(
            Problem(place, f"must know every token id of its tokenizer, below {rows}", int(samples.tokens.max()))
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and samples.lengths.max() > positions:
        problems.append(
            Problem("max_length", f"must be at most the model's {positions} positions", int(samples.lengths.max()))
        )
    _refuse(problems)
    if spec.layout.packing and not packs_cleanly(model, rows):
        raise Unsupported(f"{place}: this kind of model sees across packed samples; set packing: false")
    if spec.layout.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return lora.add_adapter(model, spec.setting) if spec.setting.method == "lora" else model


def _first_limit(spec: TrainingSpec, samples: Samples, engine: Engine, model: Any) -> packing.Limit:
    """Return the micro-batch to begin with; running out of memory halves it."""
    if spec.layout.micro_batch != "auto":
        return packing.Limit(samples=spec.layout.micro_batch)
    tokens = CPU_TOKENS
    if engine.device.type == "cuda":
        config = model.config
        tokens = packing.fitting_tokens(
            engine.free_bytes(),
            config.num_hidden_layers,
            config.hidden_size,
            config.vocab_size,
            2 if spec.setting.precision == "bf16" else 4,
            spec.layout.gradient_checkpointing,
        )
    return packing.Limit(tokens=max(min(tokens, GPU_TOKENS), int(samples.lengths.max())))


def _losses_file(directory: Path, rank: int) -> TextIO:
    if rank != 0:
        return open("/dev/null", "w")
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / "losses.jsonl").open("w")


def _train(run: _Run, directory: Path, losses: TextIO, report: Callable[[Event], None]) -> None:
    """Train to the last snapshot, or until every snapshot still to come has diverged already."""
    setting = run.spec.setting
    for epoch in range(1, max(run.spec.snapshots) + 1):
        order = batches.epoch_order(len(run.samples), setting.seed, epoch)
        for index in range(run.steps_per_epoch):
            done = _step(run, epoch, batches.batch_of(order, setting.batch, index))
            if run.rank == 0:
                losses.write(_line(done))
                losses.flush()
                report(done)
            if run.verdicts.add(done.loss, done.grad_norm):
                return
        if epoch in run.spec.snapshots:
            _snapshot(run, epoch, directory, report)


def _line(done: StepDone) -> str:
    """One line of ``losses.jsonl``; JSON has no NaN, so a number that is not finite is written as a string."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in asdict(done).items()}
    return json.dumps(values, allow_nan=False) + "\n"


def _step(run: _Run, epoch: int, batch: np.ndarray) -> StepDone:
    """One optimizer step. A loss that is not finite is told without an update."""
    began = time.perf_counter()
    spec = run.spec
    spans = [run.samples[int(index)] for index in batch]
    tokens = sum(len(span[0]) for span in spans)
    targets = int(sum(span[1].sum() for span in spans))
    horizon = spec.horizon * run.steps_per_epoch
    lr = learning_rate(spec.schedule, spec.setting.lr, run.step, horizon, spec.setting.warmup_steps)
    loss = sum_over_ranks(_accumulate(run, batch, targets)) / targets
    grad_norm = run.engine.step(lr) if math.isfinite(loss) else math.nan
    run.step += 1
    run.tokens += tokens
    run.trainable_tokens += targets
    return StepDone(run.step, epoch, loss, lr, grad_norm, tokens, targets, time.perf_counter() - began)


def _accumulate(run: _Run, batch: np.ndarray, targets: int) -> torch.Tensor:
    """Gradients of one batch; a micro-batch that does not fit is halved and the batch begun again."""
    layout = run.spec.layout
    while True:
        plan = packing.plan_step(batch, run.samples.lengths, run.engine.ranks, run.limit, layout.packing)
        micro = [packing.collate(run.samples, indices, layout.packing) for indices in plan[run.rank]]
        try:
            return run.engine.accumulate(micro, targets)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = run.limit.halved(int(run.samples.lengths.max()))
            if smaller is None or run.engine.ranks > 1:
                raise OutOfMemory(_no_memory(run)) from error
        # Outside the handler, so that the broken pass's tensors are no longer held by its traceback.
        run.limit = smaller
        run.engine.discard_gradients()


def _no_memory(run: _Run) -> str:
    limit = {name: value for name, value in asdict(run.limit).items() if value is not None}
    remedy = "use a smaller micro_batch" if run.engine.ranks > 1 else "one sample does not fit: lower max_length"
    return (
        f"out of memory at step {run.step + 1} with a micro-batch of {limit}; {remedy}, "
        "or use gradient_checkpointing, offload or more GPUs with zero: 3"
    )


def _snapshot(run: _Run, epoch: int, directory: Path, report: Callable[[Event], None]) -> None:
    folder = directory / "snapshots" / f"epoch-{epoch}"
    weights = snapshot.gather(run.engine, run.model, run.rank)
    if run.rank == 0:
        facts = {
            "trajectory": run.spec.trajectory,
            "epoch": epoch,
            "step": run.step,
            "method": run.spec.setting.method,
            "precision": run.spec.setting.precision,
        }
        snapshot.write(folder, run.model, weights, facts)
        report(SnapshotWritten(epoch, folder))
    run.snapshots[epoch] = folder
    dist.barrier()
