"""How cells are scored and measured: the protocol, the benchmarks, the names of the measures."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from massive_sft.sweep.schema.field_types import Distinct, Flag, HalfWidth, NotNegative, OneOrMore, Positive, Seed, Text
from massive_sft.sweep.schema.judging import Address, Judging
from massive_sft.sweep.schema.strict_model import StrictModel, exactly_one

TEXT_SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Fewshot(StrictModel):
    """Which examples a prompt shows."""

    sampler: Literal["first_n", "default"] = "first_n"
    """Which examples of the task's few-shot split are shown: its first ones, to every question the same, or those
    that the task's own sampler draws (``default``)."""
    seed: Seed = 1234
    """Of the draw; without effect under ``first_n``."""


class Protocol(StrictModel):
    """How scores are made, the same for base and tuned models."""

    engine: Literal["plain", "trie", "vllm"] = "plain"
    """How answers are computed. ``plain``: each sequence by itself. ``trie``: what prompts share is computed once, with
    likelihoods that agree within 1e-4 in fp32; a model that it is not exact for is scored plainly, and the record says
    why. It has not been run on a GPU yet. ``vllm``: the servers that ``vllm`` names answer, base models and adapters;
    their texts and likelihoods are their own, and nothing certifies them."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """The precision that models are scored in."""
    template: Literal["none", "training", "chat"] = "training"
    """What wraps a question: the template that the model was trained with (a base model is scored under each
    setting's), the tokenizer's chat template, or nothing, as in lm-eval."""
    adapters: Literal["unmerged", "merged"] = "unmerged"
    """Whether a LoRA adapter is merged into the weights before it is scored."""
    fewshot: Fewshot = Fewshot()
    """Which examples a prompt shows."""


class Vllm(StrictModel):
    """vLLM servers that are running already; see ``docs/guides/vllm.md``."""

    servers: Annotated[tuple[Address, ...], OneOrMore, Field(min_length=1)]
    """Where they are, such as ``http://localhost:8000/v1``; the first that serves a cell's base model is asked."""
    at_once: Positive = 64
    """How many calls a scorer has open at once."""
    timeout: Positive = 600
    """Seconds after which a call that is not answered is tried again."""


class Task(StrictModel):
    """A benchmark: lm-eval's by ``name``, or a task file at ``path``."""

    name: Text | None = None
    """A task or group of lm-eval."""
    path: Text | None = None
    """A task file; relative to the sweep file, ``${NAME}`` expanded."""
    shots: Annotated[tuple[NotNegative, ...], OneOrMore, Field(min_length=1)] | None = None
    """How many examples a prompt shows; a list asks for each. Left out: the task file's ``num_fewshot``, else 0, of a
    group each task's own."""
    limit: Positive | None = None
    """Only the first so many questions of each task; all when left out."""

    @model_validator(mode="after")
    def _one_source(self) -> Task:
        exactly_one(self, "name", "path")
        return self


class Evaluation(StrictModel):
    """What is scored, and how."""

    base: Flag = True
    """Whether base models are scored too; gains need them."""
    protocol: Protocol = Protocol()
    """How scores are made."""
    vllm: Vllm | None = None
    """The servers of ``protocol.engine: vllm``."""
    suites: Annotated[tuple[Text, ...], Distinct] = ()
    """Lists of benchmarks: a name that ``massive-sft suites`` lists, or the path of a YAML file, relative to the sweep
    file. A task file of one's own stands in for the benchmark of its name."""
    tasks: tuple[Task, ...] = ()
    """The benchmarks."""
    until: HalfWidth | None = None
    """Early answers, such as ``±2``: questions are asked of a tuned model in a random order until its difference to the
    base model is known to within so many points (half of a 99 % interval at each of five looks). Such scores are
    marked. Left out: all questions are asked. The base model is always asked all."""
    allow_code_execution: Flag = False
    """Whether benchmarks may run code that a model wrote (``unsafe_code`` in the task file, ``code_eval``,
    OpenCompass's rules ``mbpp`` and ``humaneval``). It runs on the machine that scores, behind the walls that
    ``sandbox`` asks for."""
    sandbox: Literal["strongest", "rlimits", "none"] = "strongest"
    """What walls such code in. ``strongest``: bubblewrap, or namespaces of the kernel; refused where a machine has
    neither. ``rlimits``: where it has neither, limits on time, memory and files are enough. ``none``: as ``rlimits``,
    and tasks that run such code by themselves (cruxeval, longproc_countdown) may do so, as you, with no walls."""
    judging: Judging | None = None
    """Benchmarks whose answers another model judges."""

    @property
    def code_sandbox(self) -> Literal["strongest", "rlimits", "none"] | None:
        """What walls generated code in; None where none may run."""
        return self.sandbox if self.allow_code_execution else None

    @model_validator(mode="after")
    def _servers_and_engine_belong_together(self) -> Evaluation:
        if (self.protocol.engine == "vllm") != (self.vllm is not None):
            raise ValueError("must have vllm, with its servers, where protocol.engine is vllm, and only there")
        if self.vllm is not None and self.protocol.adapters == "merged":
            raise ValueError("a vLLM server does not merge adapters: use protocol.adapters: unmerged")
        return self

    @model_validator(mode="after")
    def _early_answers_need_the_base(self) -> Evaluation:
        if self.until is not None and not self.base:
            raise ValueError("until needs base: true, for it is about the difference to the base model")
        return self


class TextSet(StrictModel):
    """Texts of which each cell's own model, base models too, says how likely they are: a vector for a model map, and
    their perplexity."""

    texts: Text
    """A file of JSON lines; relative to the sweep file, ``${NAME}`` expanded."""
    name: Annotated[str, Field(pattern=TEXT_SET_NAME, max_length=64)] | None = None
    """For people; the file's name without its extension when left out."""
    column: Text = "text"
    """The key of a line that holds the text."""
    limit: Positive | None = None
    """Only the first so many texts; all when left out."""

    @model_validator(mode="after")
    def _has_a_name(self) -> TextSet:
        if not re.fullmatch(TEXT_SET_NAME, self.title):
            raise ValueError("needs a name of letters, digits, dots, - and _")
        return self

    @property
    def title(self) -> str:
        """Its name."""
        return PurePath(self.texts).stem if self.name is None else self.name


Measure = Literal["perplexity", "layer_change", "token_length"] | TextSet
