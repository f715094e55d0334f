"""The specification of a training: everything that a worker needs to train one trajectory, as one JSON file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting, StrictModel
from massive_sft.sweep.schema.field_types import Epoch, Flag, NotNegative, Positive, Seed


class Part(StrictModel):
    """``count`` rows of one dataset (``None``: all of them); a row is used at most ``max_repeats`` times an epoch."""

    name: str
    dataset: Dataset
    count: Positive | None
    max_repeats: Positive = 1


class Mixture(StrictModel):
    """A training set: parts in canonical order (by content, so that the order of a list never changes a result)."""

    name: str
    parts: tuple[Part, ...]
    sample_seed: Seed = 0

    @property
    def size(self) -> int | None:
        """Rows in total; ``None`` when a part takes all rows of a dataset that are not counted yet."""
        counts = [part.count for part in self.parts]
        return sum(count for count in counts if count is not None) if None not in counts else None

    @property
    def key(self) -> tuple[str, int | None]:
        """Name and size: what tells a sweep's mixtures apart."""
        return self.name, self.size


class Layout(StrictModel):
    """How a trajectory is laid out on machines. Changes speed and memory, never what is computed."""

    workers: Positive = 1
    gpus: NotNegative = 0
    zero: Literal["auto", 0, 1, 2, 3] = "auto"
    offload: Literal["none", "optimizer"] = "none"
    micro_batch: Positive | Literal["auto"] = "auto"
    packing: Flag = False
    gradient_checkpointing: Flag | Literal["selective", "auto"] = False
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    kernels: Literal["auto", "plain", "compiled"] = "auto"
    lora_at_once: Positive = 1

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what files of earlier versions, and keys of measured costs, do not name."""
        content: dict[str, Any] = serialize(self)
        if self.lora_at_once == 1:
            del content["lora_at_once"]
        return content

    @property
    def stage(self) -> Literal[0, 1, 2, 3] | None:
        """The stage of DeepSpeed's ZeRO; None for torch alone, which ``auto`` takes for one worker without offload."""
        if self.zero != "auto":
            return self.zero
        return None if self.workers == 1 and self.offload == "none" else 1

    @property
    def within_layers(self) -> tuple[str, ...]:
        """The fields by which something is done within a layer, in their order; two of them exclude each other.

        Stage 3 fetches weights there, selective checkpointing tells operations apart, compiled kernels hide them.
        """
        found = {
            "zero": self.stage == 3,
            "gradient_checkpointing": self.gradient_checkpointing == "selective",
            "kernels": self.kernels == "compiled",
        }
        return tuple(field for field, is_there in found.items() if is_there)


class TrainingSpec(StrictModel):
    """One training run. Paths are absolute and expanded.

    ``horizon`` (epochs) shapes the schedule; training ends at the last of ``snapshots`` (epochs, ascending).
    """

    trajectory: str
    model: Model
    mixture: Mixture
    setting: Setting
    schedule: Schedule
    horizon: Epoch
    snapshots: tuple[Epoch, ...]
    layout: Layout = Layout()
