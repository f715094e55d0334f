"""Where and how a sweep runs: resources, storage, tracking, budget. Never part of a cell's identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from massive_sft.sweep.schema.field_types import (
    MAX_COUNT,
    MAX_DEVICES,
    AboveZero,
    Devices,
    Flag,
    IntegerOrText,
    Number,
    Positive,
    Strings,
    Text,
)
from massive_sft.sweep.schema.strict_model import StrictModel


class When(StrictModel):
    model: Strings | None = None
    mixture: Strings | None = None
    setting: Strings | None = None
    method: Literal["full", "lora"] | None = None
    phase: Literal["train", "evaluate"] | None = None


class Resource(StrictModel):
    """Who runs on what; the first rule that matches wins. Never part of identity.

    ``gpu`` is the kind of GPU, such as ``H100``: what `plan` estimates memory and time for.
    """

    when: When = When()
    gpus: Devices = 0
    gpu: Text | None = None
    workers: Annotated[Positive, Field(le=MAX_DEVICES)] | None = None
    zero: Annotated[Literal["auto", 0, 1, 2, 3], IntegerOrText] = "auto"
    offload: Literal["none", "optimizer"] = "none"
    micro_batch: Positive | Literal["auto"] = "auto"
    packing: Flag = False
    gradient_checkpointing: Flag = False
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    gpus_per_replica: Devices = 0
    replicas: Annotated[Positive, Field(le=MAX_DEVICES)] | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _one_worker_a_gpu(self) -> Resource:
        if self.gpus and self.workers not in (None, self.gpus):
            raise ValueError(f"each worker trains on one GPU: with gpus {self.gpus} leave workers out")
        return self


class KeepSnapshots(StrictModel):
    full: Literal["none", "last", "all"] = "none"
    lora: Literal["none", "last", "all"] = "all"


class Storage(StrictModel):
    """Where everything lies.

    ``resume_every`` is the time between a training's resume checkpoints in seconds, 0 for one after every step;
    ``auto`` takes two minutes, or 20 times what one costs.
    """

    root: Text
    keep_snapshots: KeepSnapshots = KeepSnapshots()
    max_waiting: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]?B$")] = "2TB"
    resume_every: Literal["auto"] | Annotated[Number, Field(ge=0, le=MAX_COUNT)] = "auto"


class Tracking(StrictModel):
    mlflow: str = ""


class Budget(StrictModel):
    gpu_hours: AboveZero | None = None
    price_per_gpu_hour: Annotated[Number, Field(ge=0)] | None = None
