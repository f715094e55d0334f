"""How cells are scored and measured: the protocol, the benchmarks, the names of the measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from massive_sft.sweep.schema.field_types import Distinct, Flag, NotNegative, OneOrMore, Positive, Seed, Text
from massive_sft.sweep.schema.strict_model import StrictModel, exactly_one


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
        exactly_one(self, "name", "path")
        return self


class Evaluation(StrictModel):
    base: Flag = True
    protocol: Protocol = Protocol()
    suites: Annotated[tuple[Text, ...], Distinct] = ()
    tasks: tuple[Task, ...] = ()
    allow_code_execution: Flag = False


Measure = Literal["perplexity", "layer_change", "token_length"]
