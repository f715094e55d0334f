"""Where models and rows come from: base models, datasets with their columns, mixtures of datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from massive_sft.sweep import dataset_filter as filters
from massive_sft.sweep.schema.field_types import (
    ColumnPath,
    ColumnPaths,
    Distinct,
    FileName,
    Flag,
    HubName,
    HubRevision,
    OneOrMore,
    Positive,
    Seed,
    Strings,
    Text,
    Weight,
)
from massive_sft.sweep.schema.strict_model import StrictModel, exactly_one


def _only_with_hub(entry: Model | Dataset, *names: str) -> None:
    """A local path has no revision, subset or split: to take one and ignore it would mislead."""
    for name in names:
        if entry.path is not None and getattr(entry, name) != type(entry).model_fields[name].default:
            raise ValueError(f"{name} goes with hub, not with path")


class Model(StrictModel):
    """A base model: ``hub`` (an id) or ``path`` (a local folder, ``${NAME}`` expanded)."""

    hub: HubName | None = None
    path: Text | None = None
    revision: HubRevision = "main"
    tokenizer: Text | None = None
    gated: Flag = False
    trust_remote_code: Flag = False

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        exactly_one(self, "hub", "path")
        _only_with_hub(self, "revision")
        return self


class Columns(StrictModel):
    """Where the text is: paths such as ``instances[0].output`` or column numbers; several are joined by newlines."""

    prompt: ColumnPaths | None = None
    completion: ColumnPaths | None = None
    messages: ColumnPath | None = None

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
    revision: HubRevision = "main"
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
        exactly_one(self, "hub", "path")
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
        exactly_one(self, "each", "concat", "leave_one_out", "weights")
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
