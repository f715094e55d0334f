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
    """A base model: ``hub`` or ``path``."""

    hub: HubName | None = None
    """An id of the hub, ``owner/name``."""
    path: Text | None = None
    """A local folder that transformers loads; relative to the sweep file, ``${NAME}`` expanded."""
    revision: HubRevision = "main"
    """A branch, tag or commit of the hub; the first run pins it to a commit (``lock.json``)."""
    tokenizer: Text | None = None
    """The folder of another tokenizer than the model's own."""
    gated: Flag = False
    """A note that the hub asks for a token (``HF_TOKEN``); ``check`` finds that out by itself."""
    trust_remote_code: Flag = False
    """Whether Python code in the model's folder may run."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        exactly_one(self, "hub", "path")
        _only_with_hub(self, "revision")
        return self


class Columns(StrictModel):
    """Where the text is: paths such as ``instances[0].output``, or column numbers where a file has no header."""

    prompt: ColumnPaths | None = None
    """Joined by newlines, those that are empty or missing left out."""
    completion: ColumnPaths | None = None
    """Joined likewise."""
    messages: ColumnPath | None = None
    """A list of messages with roles."""

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
    """An instruction dataset and how its rows become a prompt and a completion."""

    hub: HubName | None = None
    """An id of the hub, ``owner/name``."""
    path: Text | None = None
    """A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, or a folder with ``files``; ``${NAME}`` expanded."""
    revision: HubRevision = "main"
    """A branch, tag or commit of the hub; the first run pins it to a commit."""
    subset: Text | None = None
    """The hub's name of a part, such as ``main`` of gsm8k."""
    split: Text = "train"
    """Of the hub."""
    files: Annotated[tuple[FileName, ...], OneOrMore, Field(min_length=1), Distinct] | None = None
    """Of the folder, or of the hub's repository; one after another."""
    format: Literal["alpaca", "gsm8k", "p3", "messages"] | None = None
    """Columns by name: ``alpaca`` (instruction and input, output), ``gsm8k`` (question, answer), ``p3`` (prompt,
    completion), ``messages``."""
    columns: Columns | None = None
    """Columns of your own, in place of a format."""
    turns: Literal["first", "all"] = "all"
    """Of messages: train the first answer only, or all."""
    filter: Annotated[dict[str, Any], AfterValidator(filters.validate)] = Field(default_factory=dict)
    """Maps a column path (or ``prompt``, ``completion``) to the accepted value or values; under ``not`` to the refused
    ones."""
    limit: Positive | None = None
    """Only the first so many rows that pass the filter."""
    strip: tuple[Text, ...] = ()
    """Texts of special tokens that are removed from the data, the longest first."""

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        exactly_one(self, "hub", "path")
        _only_with_hub(self, "revision", "subset", "split")
        if self.format is None and self.columns is None:
            raise ValueError(f"must have a format ({', '.join(FORMATS)}) or columns")
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
    """Datasets; each is a mixture of its own, named after it."""
    concat: Strings | None = None
    """Entries of ``mixtures`` whose rows are put together into one mixture."""
    leave_one_out: Text | None = None
    """An entry of one mixture; yields it without each of its datasets, named ``ENTRY-DATASET``."""
    weights: Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    """The share of each dataset, in proportion; with ``samples``."""
    samples: Positive | None = None
    """How many: of each dataset with ``each`` (all when left out), in total with ``weights``."""
    max_repeats: Positive = 1
    """How often a row may be taken where a dataset has fewer than are asked for."""

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

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, MixtureEntry]

    sample_seed: Seed = 0
    """Draws the rows."""

    @property
    def entries(self) -> dict[str, MixtureEntry]:
        return self.__pydantic_extra__
