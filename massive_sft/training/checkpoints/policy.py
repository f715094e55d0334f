"""When a checkpoint is due, whether a training may go on from one, and how."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from massive_sft import __version__
from massive_sft.core.errors import Corrupt, Unsupported
from massive_sft.core.fingerprint import fingerprint
from massive_sft.data.samples import Samples
from massive_sft.ledger.loss_curve import LOSSES, read_steps
from massive_sft.ledger.resume_state import ResumeState
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training import micro_batch
from massive_sft.training.checkpoints import disk
from massive_sft.training.checkpoints.disk import CheckpointFacts, CheckpointStore
from massive_sft.training.events import StartedOver, StepDone
from massive_sft.training.packing import Limit

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "numpy")
# Stages whose states DeepSpeed converts into each other, and to other numbers of workers.
CONVERTIBLE = ({1, 2}, {3})
# Raised when a change of the engine gives a step other last bits, which no library's version tells.
ENGINE = 2
# Between checkpoints, when the interval is chosen here: seconds at least, and times what the last one cost.
SHORTEST_INTERVAL_S, TIMES_COST = 120.0, 20.0
# Of a state, before one was written: bytes of each trained weight, and those that a rank writes and hashes in a second,
# as measured (docs/benchmarks.md).
_STATE_BYTES, _BYTES_A_SECOND = 12, 250e6


@dataclass
class Interval:
    """When the next checkpoint is due.

    Chosen by itself it is two minutes, or 20 times what the last one cost: then they cost less than 5 % of the time,
    and a crash loses at most two minutes as long as one takes less than 6 seconds. None is due where what is left to
    train takes less than 20 times its cost.

    Attributes:
        every_s: seconds, or None to choose.
        since: when the last one was written, or the training began; seconds of the caller's clock.
        cost_s: seconds that the last one took, or the first should take.
    """

    every_s: float | None
    since: float
    cost_s: float = 0.0

    def due(self, now: float, left_s: float) -> bool:
        """Return whether one is due at ``now``, where so many seconds are left to train."""
        passed_s = now - self.since
        if self.every_s is not None:
            return passed_s >= self.every_s
        pays_s = TIMES_COST * self.cost_s
        return passed_s >= max(SHORTEST_INTERVAL_S, pays_s) and left_s >= pays_s


def first_cost_s(trained: int, ranks: int) -> float:
    """Return the seconds that the first checkpoint of so many trained weights should take; a rank writes its part."""
    return _STATE_BYTES * trained / ranks / _BYTES_A_SECOND


@dataclass(frozen=True)
class ResumePoint:
    """A sound state that a training goes on from; equal on all ranks.

    Attributes:
        folder: the state.
        facts: what it says of itself.
        steps: the steps up to it.
        repeated: losses by step that its writer still saw after it, to be compared with those now.
        notes: why what follows may differ in its last bits.
        strict: whether a repeated loss must be equal bit by bit.
        convert: whether its state is of another layout and must be converted.
        passed_over: why a state that is further cannot be used.
    """

    folder: Path
    facts: CheckpointFacts
    steps: tuple[StepDone, ...]
    repeated: Mapping[int, float]
    notes: tuple[str, ...]
    strict: bool
    convert: bool
    passed_over: tuple[str, ...] = ()


def identity(spec: TrainingSpec, samples: Samples) -> str:
    """Return the id of what is trained: the trajectory's, which ignores what has no effect, and the samples."""
    data = hashlib.sha256()
    for array in (samples.tokens, samples.trainable, samples.offsets):
        data.update(np.ascontiguousarray(array).data)
    return fingerprint({"trajectory": spec.trajectory, "samples": data.hexdigest()})


def environment(layout: Layout) -> dict[str, Any]:
    """Return what the last bits of a loss depend on beside the layout."""
    device = torch.cuda.get_device_name() if layout.gpus else _processor()
    threads = 0 if layout.gpus else torch.get_num_threads()
    libraries = {"massive-sft": __version__, **{name: version(name) for name in LIBRARIES}}
    return {**libraries, "engine": ENGINE, "device": device, "threads": threads}


def _processor() -> str:
    """Return the processor's model and the instructions that torch takes: kernels are chosen by both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"cpu {next(names, platform.machine())} {torch.backends.cpu.get_cpu_capability()}"


def find_resume_point(
    store: CheckpointStore, spec: TrainingSpec, per_epoch: int, trained: str
) -> ResumePoint | StartedOver | None:
    """Return the state to go on from, why what lies there cannot be used, or None where nothing does.

    For one rank; the others are told. Of a checkpoint and a state that was kept, the one that is further counts. One
    that is damaged no longer counts afterwards, nor does a checkpoint that is past an epoch that is asked for now.

    Args:
        store: where they lie.
        spec: what is trained now.
        per_epoch: its optimizer steps an epoch.
        trained: its ``identity``.

    Raises:
        Unsupported: when one is sound, but of a layout that cannot be loaded with this one.
        LeaseLost: another attempt owns the trajectory.
    """
    reasons, lost = [], 0
    for state in store.states():
        try:
            facts, folder = store.read(state), store.folder_of(state)
            if facts.identity != trained:
                raise Corrupt(f"{folder}: {state} is of another training")
            steps = tuple(read_steps(folder / disk.STATE / LOSSES))
            if len(steps) != facts.step:
                raise Corrupt(f"{folder}: holds {len(steps)} losses of {facts.step} steps")
        except Corrupt as error:
            reasons.append(str(error))
            store.discard(state)
        else:
            missed = _missed_epoch(facts, store.settled, spec, per_epoch)
            if missed is None:
                return _resume_point(state, facts, steps, tuple(reasons), store, spec)
            reasons.append(f"{state} is past epoch {missed}, whose snapshot is asked for now")
            if not state.is_kept:
                store.discard(state)
        lost = max(lost, state.step)
    return StartedOver("; ".join(reasons), min(lost, spec.snapshots[-1] * per_epoch)) if reasons else None


def _missed_epoch(facts: CheckpointFacts, settled: Collection[int], spec: TrainingSpec, per_epoch: int) -> int | None:
    """Return the first epoch that a state is past and whose snapshot it does not hold, though it is needed."""
    past = (epoch for epoch in spec.snapshots if epoch * per_epoch <= facts.step)
    return next((epoch for epoch in past if epoch not in settled and str(epoch) not in facts.snapshots), None)


def _resume_point(
    state: ResumeState,
    facts: CheckpointFacts,
    steps: tuple[StepDone, ...],
    passed_over: tuple[str, ...],
    store: CheckpointStore,
    spec: TrainingSpec,
) -> ResumePoint:
    changes = tuple(_changes("layout", facts.layout, spec.layout.model_dump(mode="json")))
    changes += tuple(_changes("environment", facts.environment, environment(spec.layout)))
    attempt = store.home.local(f"attempts/{facts.attempt}")
    left = micro_batch.read_limit(attempt)
    if left is not None and asdict(left) != facts.limit:
        since = f"{micro_batch.as_dict(left)} after step {facts.step}, where memory ran out"
        changes += (f"micro-batch: was {micro_batch.as_dict(Limit(**facts.limit))}, {since}",)
    return ResumePoint(
        folder=store.folder_of(state),
        facts=facts,
        steps=steps,
        repeated=_seen_after(attempt / LOSSES, facts.step),
        notes=changes,
        passed_over=passed_over,
        # Trainings that share passes may have had others beside them, which changes last bits.
        strict=not changes and not spec.layout.gpus and spec.layout.lora_at_once == 1,
        convert=_must_convert(facts, spec.layout, store.folder_of(state).parent),
    )


def _seen_after(losses: Path, step: int) -> dict[int, float]:
    """Return the losses that an attempt saw after ``step``; none where its curve is gone."""
    try:
        return {done.step: done.loss for done in read_steps(losses) if done.step > step}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _changes(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{what}: {name} was {before.get(name)}, is {now.get(name)}"


def _must_convert(facts: CheckpointFacts, layout: Layout, folder: Path) -> bool:
    """Return whether a checkpoint's state must be converted for ``layout``.

    It depends on the stage and the number of workers; the other fields of a layout only change how a step is computed
    or where state is. At stage 0 every rank holds all state, so the number of workers does not matter there.

    Raises Unsupported where it cannot.
    """
    written = Layout.model_validate(facts.layout)
    before, now = written.stage, layout.stage
    if (before, written.workers) == (now, layout.workers) or before == now == 0:
        return False
    if any({before, now} <= stages for stages in CONVERTIBLE) or (before in (1, 2) and now is None):
        return True
    raise Unsupported(
        f"{folder}: the training stopped at step {facts.step} with {_describe(written)}, whose state cannot be brought "
        f"to {_describe(layout)}: DeepSpeed converts stages 1 and 2 into each other and to zero: auto, any to other "
        f"numbers of workers; set {_describe(written)} again, or remove that folder to train from the start"
    )


def _describe(layout: Layout) -> str:
    return f"zero: {layout.zero}" + (f" and {layout.workers} workers" if layout.workers > 1 else "")
