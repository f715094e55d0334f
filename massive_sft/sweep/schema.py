"""The sweep file's schema: one pydantic class per kind of entry, unknown keys refused.

The classes accept or reject; what spans several entries (names, counts, horizons) is checked in ``sweep``.
Which fields enter a cell's identity is listed in ``identity``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from massive_sft.sweep import filter as filters
from massive_sft.sweep import template
from massive_sft.sweep.execution import Budget, Resource, Storage, Tracking
from massive_sft.sweep.field_types import (
    MAX_NAME_BYTES,
    MAX_RANK,
    AboveZero,
    Column,
    ColumnPaths,
    Distinct,
    Epoch,
    Epochs,
    FileName,
    Flag,
    Fraction,
    HubName,
    Integer,
    NotNegative,
    Number,
    OneOrMore,
    Positive,
    Rate,
    Revision,
    Seed,
    Strings,
    Text,
    Weight,
)  # fmt: skip
from massive_sft.sweep.strict_model import StrictModel


def _exactly_one(entry: BaseModel, *names: str) -> None:
    if sum(getattr(entry, name) is not None for name in names) != 1:
        raise ValueError(f"must have exactly one of: {', '.join(names)}")


def _only_with_hub(entry: Model | Dataset, *names: str) -> None:
    """A local path has no revision, subset or split: to take one and ignore it would mislead."""
    for name in names:
        if entry.path is not None and getattr(entry, name) != type(entry).model_fields[name].default:
            raise ValueError(f"{name} goes with hub, not with path")


class Model(StrictModel):
    """A base model: ``hub`` (an id) or ``path`` (a local folder, ``${NAME}`` expanded)."""

    hub: HubName | None = None
    path: Text | None = None
    revision: Revision = "main"
    tokenizer: Text | None = None
    gated: Flag = False
    trust_remote_code: Flag = False

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        _exactly_one(self, "hub", "path")
        _only_with_hub(self, "revision")
        return self


class Columns(StrictModel):
    """Where the text is: paths such as ``instances[0].output`` or column numbers; several are joined by newlines."""

    prompt: ColumnPaths | None = None
    completion: ColumnPaths | None = None
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


class Dataset(StrictModel):
    """An instruction dataset and how its rows become a prompt and a completion.

    ``filter`` maps a column path (or ``prompt``, ``completion``) to the accepted value or values; under ``not``
    to the refused ones. ``limit`` keeps the first rows that pass it. ``strip`` removes special-token texts, the
    longest first.
    """

    hub: HubName | None = None
    path: Text | None = None
    revision: Revision = "main"
    subset: Text | None = None
    split: Text = "train"
    files: Annotated[tuple[FileName, ...], OneOrMore, Field(min_length=1), Distinct] | None = None
    format: Literal["alpaca", "gsm8k", "p3", "messages"] | None = None
    columns: Columns | None = None
    turns: Literal["first", "all"] = "all"
    filter: Annotated[dict[str, Any], AfterValidator(filters.validate)] = Field(default_factory=dict)
    limit: Positive | None = None
    strip: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        _exactly_one(self, "hub", "path")
        _only_with_hub(self, "revision", "subset", "split")
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


class MixtureEntry(StrictModel):
    """One line of ``mixtures``: a rule that yields one mixture or, for ``each`` and ``leave_one_out``, several."""

    each: Strings | None = None
    concat: Strings | None = None
    leave_one_out: Text | None = None
    weights: dict[str, Weight] | None = None
    samples: Positive | None = None
    max_repeats: Positive = 1

    @model_validator(mode="after")
    def _one_rule(self) -> MixtureEntry:
        _exactly_one(self, "each", "concat", "leave_one_out", "weights")
        if self.weights is not None and self.samples is None:
            raise ValueError("weights need samples, the total")
        if self.max_repeats > 1 and self.samples is None:
            raise ValueError("max_repeats goes with samples: without them each row is taken once")
        if self.samples is not None and (self.concat or self.leave_one_out):
            raise ValueError(
                "samples goes with each or weights; concat and leave_one_out take theirs from what they name"
            )
        return self


class Mixtures(BaseModel):
    """All mixtures of a sweep, by name, and the seed that draws their samples."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, MixtureEntry]

    sample_seed: Seed = 0

    @property
    def entries(self) -> dict[str, MixtureEntry]:
        return self.__pydantic_extra__


class TemplateText(StrictModel):
    """A template of one's own: ``prompt`` holds ``{prompt}`` once; the completion follows it."""

    prompt: str

    @model_validator(mode="after")
    def _holds_the_field(self) -> TemplateText:
        problem = template.field_problem("prompt", self.prompt, "prompt")
        if problem:
            raise ValueError(problem.rule)
        return self


def _none_is_null(value: Any) -> Any:
    return None if value == "none" else value


class Optimizer(StrictModel):
    """``clip`` is the largest gradient norm; ``none`` or null clips nothing (an overlay can only say ``none``).

    ``decay`` says which weights ``weight_decay`` is for: ``matrices``, without biases and the weights of norms, as in
    transformers' Trainer, or ``all``.
    """

    name: Literal["adamw"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[Rate, Field(le=1)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    decay: Literal["matrices", "all"] = "matrices"
    clip: Annotated[Annotated[AboveZero, Field(le=1e30)] | None, BeforeValidator(_none_is_null)] = 1.0

    @property
    def unused_fields(self) -> frozenset[str]:
        return frozenset() if self.weight_decay else frozenset({"decay"})


class Lora(StrictModel):
    rank: Annotated[Positive, Field(le=MAX_RANK)] = 16
    alpha: Annotated[Rate, Field(le=1e6)] = 32.0
    dropout: Fraction = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1)] = "all-linear"


class Setting(StrictModel):
    """Everything of training that changes the result, but for data, schedule and snapshot."""

    method: Literal["full", "lora"]
    lr: Rate
    batch: Positive
    template: Literal["paper", "plain", "chat"] | TemplateText = "paper"
    loss_on: Literal["completion", "all"] = "completion"
    max_length: Annotated[Positive, Field(gt=1)] = 2048
    truncation: Literal["right", "left", "drop", "refuse"] = "right"
    precision: Literal["bf16", "fp32"] = "bf16"
    optimizer: Optimizer = Optimizer()
    warmup_steps: NotNegative = 0
    seed: Seed = 0
    lora: Lora = Lora()

    @property
    def unused_fields(self) -> frozenset[str]:
        return frozenset() if self.method == "lora" else frozenset({"lora"})


class Schedule(StrictModel):
    """A learning-rate schedule: a function of the step within a horizon (epochs).

    ``final`` is the last learning rate as a fraction of the peak; ``decay`` the fraction of the horizon that wsd
    (warm-up, stable, decay) spends on decaying.
    """

    name: Literal["constant", "cosine", "linear", "wsd"]
    final: Fraction = 0.0
    decay: Annotated[AboveZero, Field(le=1)] = 0.2

    @property
    def unused_fields(self) -> frozenset[str]:
        return {"constant": frozenset({"final", "decay"}), "wsd": frozenset[str]()}.get(self.name, frozenset({"decay"}))

    @property
    def label(self) -> str:
        """What people call it: the name, and what is unusual about it, e.g. ``wsd(decay=0.5)``."""
        used = [key for key in ("decay", "final") if key not in self.unused_fields]
        unusual = [key for key in used if getattr(self, key) != type(self).model_fields[key].default]
        listed = ",".join(f"{key}={getattr(self, key)}" for key in unusual)
        return f"{self.name}({listed})" if listed else self.name

    def __str__(self) -> str:
        return self.label


SCHEDULES = ("constant", "cosine", "linear", "wsd")


def _as_schedules(value: Any) -> Any:
    return tuple(
        {"name": item} if isinstance(item, str) else item
        for item in (value if isinstance(value, (list, tuple)) else [value])
    )


class Block(StrictModel):
    """A full cross of models × mixtures × settings × schedules × snapshots, less its excludes."""

    name: Text
    model: Strings
    mixture: Strings
    setting: Strings
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(_as_schedules), Field(min_length=1), Distinct]
    horizon: Epoch
    snapshots: Epochs
    exclude: tuple[dict[str, Any], ...] = ()
    override: dict[str, Any] = Field(default_factory=dict)


class Fewshot(StrictModel):
    sampler: Literal["first_n", "default"] = "first_n"
    seed: Seed = 1234


class Protocol(StrictModel):
    """How scores are made, the same for base and tuned models."""

    engine: Literal["plain", "trie"] = "plain"
    dtype: Literal["bf16", "fp32"] = "bf16"
    template: Literal["none", "training", "chat"] = "training"
    adapters: Literal["unmerged", "merged"] = "unmerged"
    fewshot: Fewshot = Fewshot()


class Task(StrictModel):
    """A benchmark: a task or group that lm-eval knows by ``name``, or a task file at ``path``.

    Without ``shots`` each of its tasks has the number that its task file names (``num_fewshot``), else 0.
    """

    name: Text | None = None
    path: Text | None = None
    shots: Annotated[tuple[NotNegative, ...], OneOrMore, Field(min_length=1)] | None = None
    limit: Positive | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Task:
        _exactly_one(self, "name", "path")
        return self


class Evaluation(StrictModel):
    base: Flag = True
    protocol: Protocol = Protocol()
    suites: Annotated[tuple[Text, ...], Distinct] = ()
    tasks: tuple[Task, ...] = ()
    allow_code_execution: Flag = False


Measure = Literal["perplexity", "layer_change", "token_length"]


class SweepFile(StrictModel):
    """The whole file. ``settings`` stays raw here: entries are merged over ``defaults`` before they are a Setting.

    That models, datasets and blocks hold something is checked in ``load``, which sets broken entries aside first.
    """

    schema_: Annotated[Literal[1], Integer, Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_BYTES)]
    models: dict[str, Model]
    model_sets: dict[str, Strings] = Field(default_factory=dict)
    datasets: dict[str, Dataset]
    mixtures: Mixtures
    settings: dict[str, dict[str, Any]]
    blocks: tuple[Block, ...]
    evaluation: Evaluation = Evaluation()
    measures: Annotated[tuple[Measure, ...], Distinct] = ()
    resources: tuple[Resource, ...] = ()
    storage: Storage
    tracking: Tracking = Tracking()
    budget: Budget = Budget()
