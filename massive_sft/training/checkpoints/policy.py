"""Going on from a checkpoint: whether one may, how, and whether the losses go on as they should."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from massive_sft.core.errors import Corrupt, MassiveSFTError, Unsupported
from massive_sft.core.fingerprint import fingerprint
from massive_sft.data.samples import Samples
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training.checkpoints import disk
from massive_sft.training.checkpoints.disk import Checkpoints, Facts
from massive_sft.training.divergence import LossCurve
from massive_sft.training.events import StartedOver, StepDone

LIBRARIES = ("massive-sft", "torch", "deepspeed", "transformers", "peft", "numpy")
# What DeepSpeed's files depend on. The other fields of a layout only change how a step is computed or where state is.
STORED = ("zero", "workers")
# Stages whose states DeepSpeed converts into each other, and to other numbers of workers.
CONVERTIBLE = ({1, 2}, {3})
# Raised when a change of the engine gives a step other last bits, which no library's version tells.
ENGINE = 2
# Difference of the first repeated loss, relative, and in nats for a loss near 0: what rounding to bf16 and other
# dropout masks explain.
TOLERANCE, NATS = 0.02, 0.01
SECONDS, SHARE = 120.0, 20.0


class LossJump(MassiveSFTError):
    """After a resume the loss does not go on where it was: the state that was loaded is not the one that was saved."""


@dataclass
class Interval:
    """When the next checkpoint is due.

    Chosen by itself it is two minutes, or 20 times what the last one cost: then they cost less than 5 % of the time,
    and a crash loses at most two minutes as long as one takes less than 6 seconds.

    Attributes:
        every: seconds, or None to choose.
        since: when the last one was written, or the training began; seconds of the caller's clock.
        cost: seconds that the last one took.
    """

    every: float | None
    since: float
    cost: float = 0.0

    def due(self, now: float) -> bool:
        """Return whether one is due at ``now``."""
        return now - self.since >= (max(SECONDS, SHARE * self.cost) if self.every is None else self.every)


@dataclass(frozen=True)
class Start:
    """A checkpoint that a training goes on from; equal on all ranks.

    Attributes:
        folder: the checkpoint.
        facts: what it says of itself.
        steps: the steps up to it.
        repeated: losses by step that its writer still saw after it, to be compared with those now.
        notes: why what follows may differ in its last bits.
        strict: whether a repeated loss must be equal bit by bit.
        convert: whether its state is of another layout and must be converted.
    """

    folder: Path
    facts: Facts
    steps: tuple[StepDone, ...]
    repeated: Mapping[int, float]
    notes: tuple[str, ...]
    strict: bool
    convert: bool


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
    return {**{name: version(name) for name in LIBRARIES}, "engine": ENGINE, "device": device, "threads": threads}


def _processor() -> str:
    """Return the processor's model and the instructions that torch takes: kernels are chosen by both."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"cpu {next(names, platform.machine())} {torch.backends.cpu.get_cpu_capability()}"


def find(
    checkpoints: Checkpoints, spec: TrainingSpec, steps_per_epoch: int, trained: str
) -> Start | StartedOver | None:
    """Return the checkpoint to go on from, why the one that lies there cannot be used, or None without one.

    For one rank; the others are told. One that cannot be used no longer counts afterwards.

    Args:
        checkpoints: where it lies.
        spec: what is trained now.
        steps_per_epoch: its optimizer steps an epoch.
        trained: its ``identity``.

    Raises:
        Unsupported: when it is sound, but of a layout that cannot be loaded with this one.
        LeaseLost: another attempt owns the trajectory.
    """
    try:
        found = disk.read(checkpoints.folder)
        if found is None:
            return None
        folder, facts = found
        _require_same(facts, spec, steps_per_epoch, trained)
        steps = tuple(read_steps(folder / disk.STATE / disk.LOSSES))
        if len(steps) != facts.step:
            raise Corrupt(f"{folder}: holds {len(steps)} losses of {facts.step} steps")
    except Corrupt as error:
        disk.discard(checkpoints)
        return StartedOver(str(error))
    changes = list(_changes("layout", facts.layout, spec.layout.model_dump(mode="json")))
    changes += _changes("environment", facts.environment, environment(spec.layout))
    return Start(
        folder=folder,
        facts=facts,
        steps=steps,
        repeated=_seen_after(checkpoints.home / "attempts" / str(facts.attempt) / disk.LOSSES, facts.step),
        notes=tuple(changes),
        strict=not changes and not spec.layout.gpus,
        convert=_must_convert(facts, spec.layout, checkpoints.folder),
    )


def read_steps(path: Path) -> Iterable[StepDone]:
    """Yield the steps of a loss curve up to the first line that is not whole, where its writer was killed."""
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        values: dict[str, Any] = json.loads(line)
        values |= {name: float(value) for name, value in values.items() if isinstance(value, str)}  # nan, inf
        yield StepDone(**values)


def _require_same(facts: Facts, spec: TrainingSpec, steps_per_epoch: int, trained: str) -> None:
    if facts.identity != trained:
        raise Corrupt(f"the checkpoint of attempt {facts.attempt} is of another training")
    past = [epoch for epoch in spec.snapshots if epoch * steps_per_epoch <= facts.step]
    missed = [epoch for epoch in past if str(epoch) not in facts.snapshots]
    if missed:
        raise Corrupt(f"the checkpoint of step {facts.step} is past epoch {missed[0]}, whose snapshot is asked for now")


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


def _must_convert(facts: Facts, layout: Layout, folder: Path) -> bool:
    """Return whether a checkpoint's state must be converted for ``layout``.

    At stage 0 every rank holds all state, so the number of workers does not matter there.

    Raises Unsupported where it cannot.
    """
    before, now = ({name: one[name] for name in STORED} for one in (facts.layout, layout.model_dump()))
    if before == now or before["zero"] == now["zero"] == 0:
        return False
    if any({before["zero"], now["zero"]} <= stages for stages in CONVERTIBLE):
        return True
    raise Unsupported(
        f"{folder}: the training stopped at step {facts.step} with zero: {before['zero']}, and DeepSpeed converts its "
        f"state only between stages 1 and 2, so it cannot go on with zero: {now['zero']}; set zero: {before['zero']} "
        "again, or remove that folder to train from the start"
    )


@dataclass(frozen=True)
class Resumption:
    """One entry of a training's history: an attempt that did not begin at the start, or had to begin there again.

    Attributes:
        attempt: who resumed.
        source: the attempt that wrote the checkpoint; None when it could not be used.
        step: where it went on; 0 for the start.
        repeated: steps that the other attempt had done as well, after its checkpoint.
        exact: whether their losses were equal bit by bit; None when there were none.
        notes: what was different, or why it began at the start.
    """

    attempt: int
    source: int | None
    step: int
    repeated: int = 0
    exact: bool | None = None
    notes: tuple[str, ...] = ()


class Continuity:
    """Compares the losses after a resume with those before.

    - A step that the checkpoint's writer had done as well: bit by bit where layout and libraries are the same and no
      GPU is used (its attention kernels add in any order). Else the first of them within 2 % or 0.01 nats, later ones
      not at all, because rounding grows.
    - Without such a step: the first loss must not lie above the highest of the last 5 % of steps (at least 5) by more
      than 0.5 nats and five standard deviations of the noise between batches. Weights that were lost show there.
    """

    def __init__(self, start: Start, attempt: int):
        self._start = start
        self._attempt = attempt
        self._repeated = 0
        self._exact: bool | None = None

    def check(self, done: StepDone, curve: LossCurve) -> None:
        """Judge a step, before it is added to ``curve``. Raises LossJump."""
        before = self._start.repeated.get(done.step)
        is_first = done.step == self._start.facts.step + 1
        if before is None:
            highest = curve.highest_next()
            if is_first and done.loss > highest:
                self._refuse(done, f"must be at most {highest:.6g} by the losses before")
            return
        same = before == done.loss or (math.isnan(before) and math.isnan(done.loss))
        self._repeated += 1
        self._exact = same and self._exact is not False
        if not same and self._start.strict:
            self._refuse(done, f"was {before!r} before, and must be equal bit by bit")
        if is_first and not same and not abs(done.loss - before) <= max(TOLERANCE * abs(before), NATS):
            self._refuse(done, f"was {before!r} before, and must be within {TOLERANCE:.0%} or {NATS} nats of it")

    @property
    def result(self) -> Resumption:
        """What is known so far."""
        facts = self._start.facts
        return Resumption(self._attempt, facts.attempt, facts.step, self._repeated, self._exact, self._start.notes)

    def _refuse(self, done: StepDone, rule: str) -> None:
        folder = self._start.folder.parent
        raise LossJump(
            f"{folder}: resumed after step {self._start.facts.step}, the loss of step {done.step} is {done.loss!r}; it "
            f"{rule}. Remove that folder to train from the start"
        )
