"""Where and how a sweep runs: resources, cluster, storage, tracking, budget. Never part of a cell's identity."""

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
    Size,
    Strings,
    Text,
)
from massive_sft.sweep.schema.strict_model import StrictModel

MAX_AT_ONCE = 64  # trainings in one pass


class When(StrictModel):
    """What a rule is for: a training run that fits all that is named. Empty: every one."""

    model: Strings | None = None
    """Models or model sets."""
    mixture: Strings | None = None
    """Mixtures, or entries of ``mixtures``."""
    setting: Strings | None = None
    """Settings."""
    method: Literal["full", "lora"] | None = None
    """Of the setting."""
    phase: Literal["train", "evaluate"] | None = None
    """Training alone, or scoring alone."""


class Resource(StrictModel):
    """Who runs on what; the first rule that matches wins. Never part of identity."""

    when: When = When()
    """Which training runs the rule is for."""
    gpus: Devices | Literal["auto"] = 0
    """GPUs of one training, on one node where one has so many; 0 trains on the CPU. ``auto``: of 1, 2, 4 and 8 what
    takes the fewest GPU-hours of those that should fit, for each model and setting, by ``plan``'s estimates; needs
    ``gpu``, or a GPU in the machine that plans. Where any rule has GPUs, scoring has them too."""
    gpu: Text | None = None
    """The kind of GPU, such as ``H100``: what ``plan`` estimates memory and time for, and what a cluster's node must
    have. Without it any will do, but one kind for all workers of a training."""
    workers: Annotated[Positive, Field(le=MAX_DEVICES)] | None = None
    """Processes of one training on the CPU; with ``gpus`` there is one on each. One when left out."""
    zero: Annotated[Literal["auto", 0, 1, 2, 3], IntegerOrText] = "auto"
    """The stage of DeepSpeed's ZeRO, which shares optimizer states (1), gradients (2) and weights (3) among workers; 0
    shares nothing and needs fp32. ``auto``: torch alone for one worker without offload, else 1; with ``gpus: auto`` 3
    where 1 does not fit."""
    offload: Literal["none", "optimizer"] = "none"
    """Where the optimizer's states lie: beside the weights, or in host memory (needs ``zero`` of 1 or more, or
    ``auto``)."""
    micro_batch: Positive | Literal["auto"] = "auto"
    """Samples in one pass of a worker. ``auto`` begins with the tokens that should fit and halves them when memory
    runs out."""
    packing: Flag = False
    """Whether several samples share a row, kept apart by the attention, instead of being padded to one length."""
    gradient_checkpointing: Flag | Literal["selective", "auto"] = False
    """Whether activations are computed again in the backward pass: less memory, a third more work (LoRA: half).
    ``selective``: those between matrix products and attention alone, which are little work; not under
    ``zero: 3``, nor with ``kernels: compiled``. ``auto``: the first of ``false``, ``selective`` and ``true`` that
    should fit the GPU (on a CPU ``false``), and the next where memory runs out before the first step; not with
    ``lora_at_once``."""
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    """The implementation. ``auto`` takes one that computes the model's family exactly."""
    kernels: Literal["auto", "plain", "compiled"] = "auto"
    """``compiled``: those that torch.compile makes of the model's layers, a fifth faster on a GPU, after a trial that
    they compute the same. ``auto`` compiles on a GPU where the training is long enough to pay for it, not with
    ``packing`` and not under ``zero: 3``."""
    lora_at_once: Annotated[Positive, Field(le=MAX_AT_ONCE)] = 1
    """LoRA trainings of one base on the same samples in the same order that take their steps in one pass, at most; each
    has its own learning rate, rank, alpha and schedule, and all of its own records. For one worker with ``zero: auto``,
    without dropout."""
    gpus_per_replica: Devices = 0
    """GPUs of one scorer; 1 when left out, where any rule has GPUs."""
    replicas: Annotated[Positive, Field(le=MAX_DEVICES)] | Literal["auto"] = "auto"
    """Scorers at a time, at most; ``auto``: as many as have room."""

    @model_validator(mode="after")
    def _one_worker_a_gpu(self) -> Resource:
        if self.gpus and self.workers not in (None, self.gpus):  # beside ``auto`` none is right
            raise ValueError(f"each worker trains on one GPU: with gpus {self.gpus} leave workers out")
        return self


class Cluster(StrictModel):
    """What to expect of the cluster that ``RAY_ADDRESS`` names."""

    wait: Annotated[Number, Field(ge=0, le=MAX_COUNT)] = 0
    """Seconds that a run waits without getting further for what ``resources`` ask for: nodes that are still to come,
    for which it asks the cluster's autoscaler, and room that other jobs have. 0: it ends where nodes lack, and says
    which rule asks for them and what is there."""


class KeepSnapshots(StrictModel):
    """Which snapshots stay after their cell is complete: none, a training's last, or all."""

    full: Literal["none", "last", "all"] = "none"
    """Snapshots of full tuning, each as large as the model."""
    lora: Literal["none", "last", "all"] = "all"
    """Adapters."""


class Storage(StrictModel):
    """Where everything lies."""

    root: Text
    """The folder of all results, which sweeps may share; relative to the sweep file, ``${NAME}`` expanded. Or a place
    in an object store, ``s3://BUCKET/PREFIX`` (a training's workers are on one node then): files in work, token caches
    and the local MLflow store lie on each machine, below ``MASSIVE_SFT_CACHE``; needs the extra ``s3``."""
    snapshots: Text | None = None
    """A place in an object store for the weights of snapshots, ``s3://BUCKET/PREFIX``, ``${NAME}`` expanded; left out:
    under the root. Endpoint and keys come from the environment (``AWS_*``); needs the extra ``s3``."""
    keep_snapshots: KeepSnapshots = KeepSnapshots()
    """Which snapshots stay after their cell is complete."""
    keep_state: Literal["none", "last"] = "none"
    """What a finished training keeps to go on from, should a later epoch be asked for: nothing, so that it is trained
    again from its start, or its last state, so that only the missing steps are taken. A state is weights, master copy
    and optimizer (14 bytes for each trained weight in bf16, 16 in fp32); ``plan`` prices it."""
    max_waiting: Size = "2TB"
    """What snapshots that wait for a scorer may take on the disk: beyond it GPUs turn to scoring, and no other training
    begins."""
    resume_every: Literal["auto"] | Annotated[Number, Field(ge=0, le=MAX_COUNT)] = "auto"
    """Seconds between a training's resume checkpoints, 0 for one after every step; ``auto`` takes two minutes, or 20
    times what one costs, and writes none once less than that is left to train."""


class Tracking(StrictModel):
    """Where results are mirrored to."""

    mlflow: str = ""
    """The address of an MLflow server, ``${NAME}`` expanded; empty: a local store under the storage root."""


class Budget(StrictModel):
    """What a sweep may take."""

    gpu_hours: AboveZero | None = None
    """``plan`` and ``run`` take what this pays for: base rows, then a balanced part of models × mixtures.
    Not beside a search, which has its own."""
    price_per_gpu_hour: Annotated[Number, Field(ge=0)] | None = None
    """What ``plan`` counts money with."""
