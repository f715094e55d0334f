"""The sweep file's schema: one pydantic class per kind of entry, unknown keys refused.

The classes accept or reject; what spans several entries (names, counts, horizons) is checked in ``sweep``.
Which fields enter a cell's identity is listed in ``cell.HASHED`` and ``cell.UNHASHED``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from massive_sft.sweep import template

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """An entry of the sweep file: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _as_epochs(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\.\.(\d+)", value)
        if not match or int(match[1]) > int(match[2]):
            raise ValueError("must be an epoch, a list of epochs or a range such as 1..10")
        return tuple(range(int(match[1]), int(match[2]) + 1))
    return _as_tuple(value)


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Epochs = Annotated[tuple[Positive, ...], BeforeValidator(_as_epochs), Field(min_length=1)]


def _exactly_one(entry: BaseModel, *names: str) -> None:
    if sum(getattr(entry, name) is not None for name in names) != 1:
        raise ValueError(f"must have exactly one of: {', '.join(names)}")


class Model(Strict):
    """A base model: ``hub`` (an id) or ``path`` (a local folder, ``${NAME}`` expanded)."""

    hub: str | None = None
    path: str | None = None
    revision: str = "main"
    tokenizer: str | None = None
    gated: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        _exactly_one(self, "hub", "path")
        return self


Column = str | int
ColumnPath = Annotated[tuple[Column, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Columns(Strict):
    """Where the text is: paths such as ``instances[0].output`` or column numbers; several are joined by newlines."""

    prompt: ColumnPath | None = None
    completion: ColumnPath | None = None
    messages: Column | None = None

    @model_validator(mode="after")
    def _pair_or_messages(self) -> Columns:
        if (self.prompt is None) != (self.completion is None) or (self.prompt is None) == (self.messages is None):
            raise ValueError("must have prompt and completion, or messages alone")
        return self


FORMATS: dict[str, Columns] = {
    "alpaca": Columns(prompt=("instruction", "input"), completion=("output",)),
    "gsm8k": Columns(prompt=("question",), completion=("answer",)),
    "p3": Columns(prompt=("prompt",), completion=("completion",)),
    "messages": Columns(messages="messages"),
}


class Dataset(Strict):
    """An instruction dataset and how its rows become a prompt and a completion.

    ``filter`` maps a column path (or ``prompt``, ``completion``) to the accepted value or values; under ``not``
    to the refused ones. ``limit`` keeps the first rows that pass it. ``strip`` removes special-token texts.
    """

    hub: str | None = None
    path: str | None = None
    revision: str = "main"
    subset: str | None = None
    split: str = "train"
    files: Strings | None = None
    format: Literal["alpaca", "gsm8k", "p3", "messages"] | None = None
    columns: Columns | None = None
    turns: Literal["first", "all"] = "all"
    filter: dict[str, Any] = {}
    limit: Positive | None = None
    strip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        _exactly_one(self, "hub", "path")
        if self.format is None and self.columns is None:
            raise ValueError("must have a format or columns")
        if self.format not in (None, "messages") and self.columns is not None:
            raise ValueError("must have a format or columns, not both")
        if self.format == "messages" and self.columns is not None and self.columns.messages is None:
            raise ValueError("format messages takes only columns.messages")
        return self

    @property
    def mapping(self) -> Columns:
        """The columns, a named format written out."""
        return self.columns if self.columns is not None else FORMATS[str(self.format)]


class MixtureEntry(Strict):
    """One line of ``mixtures``: a rule that yields one mixture or, for ``each`` and ``leave_one_out``, several."""

    each: Strings | None = None
    concat: Strings | None = None
    leave_one_out: str | None = None
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    samples: Positive | None = None
    max_repeats: Positive = 1

    @model_validator(mode="after")
    def _one_rule(self) -> MixtureEntry:
        _exactly_one(self, "each", "concat", "leave_one_out", "weights")
        if self.weights is not None and self.samples is None:
            raise ValueError("weights need samples, the total")
        if self.samples is not None and (self.concat or self.leave_one_out):
            raise ValueError(
                "samples goes with each or weights; concat and leave_one_out take theirs from what they name"
            )
        return self


class Mixtures(BaseModel):
    """All mixtures of a sweep, by name, and the seed that draws their samples."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, MixtureEntry]

    sample_seed: int = 0

    @property
    def entries(self) -> dict[str, MixtureEntry]:
        return self.__pydantic_extra__


class TemplateText(Strict):
    """A template of one's own: ``prompt`` holds ``{prompt}`` once; the completion follows it."""

    prompt: str

    @model_validator(mode="after")
    def _holds_the_field(self) -> TemplateText:
        problem = template.field_problem("prompt", self.prompt, "prompt")
        if problem:
            raise ValueError(problem.rule)
        return self


class Optimizer(Strict):
    name: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class Lora(Strict):
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Setting(Strict):
    """Everything of training that changes the result, but for data, schedule and snapshot."""

    method: Literal["full", "lora"]
    lr: Annotated[float, Field(gt=0)]
    batch: Positive
    template: Literal["paper", "plain", "chat"] | TemplateText = "paper"
    loss_on: Literal["completion", "all"] = "completion"
    max_length: Annotated[int, Field(gt=1)] = 2048
    truncation: Literal["right", "left", "drop", "refuse"] = "right"
    precision: Literal["bf16", "fp32"] = "bf16"
    optimizer: Optimizer = Optimizer()
    warmup_steps: NotNegative = 0
    seed: int = 0
    lora: Lora = Lora()


class Schedule(Strict):
    """A learning-rate schedule: a function of the step within a horizon (epochs).

    ``final`` is the last learning rate as a fraction of the peak; ``decay`` the fraction of the horizon that wsd
    (warm-up, stable, decay) spends on decaying.
    """

    name: Literal["constant", "cosine", "linear", "wsd"]
    final: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2


SCHEDULES = ("constant", "cosine", "linear", "wsd")


def _as_schedules(value: Any) -> Any:
    return tuple({"name": item} if isinstance(item, str) else item for item in _as_tuple(value))


class Block(Strict):
    """A full cross of models × mixtures × settings × schedules × snapshots, less its excludes."""

    name: str
    model: Strings
    mixture: Strings
    setting: Strings
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(_as_schedules), Field(min_length=1)]
    horizon: Positive
    snapshots: Epochs
    exclude: tuple[dict[str, Any], ...] = ()
    override: dict[str, Any] = {}


class Fewshot(Strict):
    sampler: Literal["first_n", "default"] = "first_n"
    seed: int = 1234


class Protocol(Strict):
    """How scores are made, the same for base and tuned models."""

    engine: Literal["plain", "trie"] = "plain"
    dtype: Literal["bf16", "fp32"] = "bf16"
    template: Literal["none", "training", "chat"] = "training"
    adapters: Literal["unmerged", "merged"] = "unmerged"
    fewshot: Fewshot = Fewshot()


class Task(Strict):
    """A benchmark: a task or group that lm-eval knows by ``name``, or a task file at ``path``."""

    name: str | None = None
    path: str | None = None
    shots: Annotated[tuple[NotNegative, ...], BeforeValidator(_as_tuple)] = (0,)
    limit: Positive | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Task:
        _exactly_one(self, "name", "path")
        return self


class Evaluation(Strict):
    base: bool = True
    protocol: Protocol = Protocol()
    suites: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    allow_code_execution: bool = False


class When(Strict):
    model: Strings | None = None
    mixture: Strings | None = None
    setting: Strings | None = None
    method: Literal["full", "lora"] | None = None
    phase: Literal["train", "evaluate"] | None = None


class Resource(Strict):
    """Who runs on what; the first rule that matches wins. Never part of identity."""

    when: When = When()
    gpus: NotNegative = 0
    workers: Positive | None = None
    zero: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer"] = "none"
    micro_batch: Positive | Literal["auto"] = "auto"
    packing: bool = False
    gradient_checkpointing: bool = False
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    gpus_per_replica: NotNegative = 0
    replicas: Positive | Literal["auto"] = "auto"


class KeepSnapshots(Strict):
    full: Literal["none", "last", "all"] = "none"
    lora: Literal["none", "last", "all"] = "all"


class Storage(Strict):
    root: str
    keep_snapshots: KeepSnapshots = KeepSnapshots()
    max_waiting: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]?B$")] = "2TB"
    resume_every: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"


class Tracking(Strict):
    mlflow: str = ""


class Budget(Strict):
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None


Measure = Literal["perplexity", "layer_change", "token_length"]


class SweepFile(Strict):
    """The whole file. ``settings`` stays raw here: entries are merged over ``defaults`` before they are a Setting."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    models: Annotated[dict[str, Model], Field(min_length=1)]
    model_sets: dict[str, Strings] = {}
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    mixtures: Mixtures
    settings: dict[str, dict[str, Any]]
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    evaluation: Evaluation = Evaluation()
    measures: tuple[Measure, ...] = ()
    resources: tuple[Resource, ...] = ()
    storage: Storage
    tracking: Tracking = Tracking()
    budget: Budget = Budget()
