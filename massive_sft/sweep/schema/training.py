"""How a run is trained: template, optimizer, LoRA, the setting that holds them, the learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from massive_sft.sweep import template
from massive_sft.sweep.schema.field_types import (
    MAX_RANK,
    AboveZero,
    Fraction,
    NotNegative,
    Number,
    Positive,
    Rate,
    Seed,
    Text,
)
from massive_sft.sweep.schema.strict_model import StrictModel


class TemplateText(StrictModel):
    """A template of one's own: ``prompt`` holds ``{prompt}`` once; the completion follows it."""

    prompt: str
    """What comes before the answer."""

    @model_validator(mode="after")
    def _holds_the_field(self) -> TemplateText:
        problem = template.field_problem("prompt", self.prompt, "prompt")
        if problem:
            raise ValueError(problem.rule)
        return self


def none_is_null(value: Any) -> Any:
    """Return None for the text ``none``."""
    return None if value == "none" else value


class Optimizer(StrictModel):
    """How gradients change weights."""

    name: Literal["adamw"] = "adamw"
    """AdamW is the only one."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: Annotated[Rate, Field(le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    """Decoupled, times the learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """Which weights ``weight_decay`` is for: all, or matrices alone, without biases and the weights of norms, as in
    transformers' Trainer."""
    clip: Annotated[Annotated[AboveZero, Field(le=1e30)] | None, BeforeValidator(none_is_null)] = 1.0
    """The largest norm of the gradient; ``none`` or null clips nothing (an overlay can only say ``none``)."""

    @property
    def unused_fields(self) -> frozenset[str]:
        return frozenset() if self.weight_decay else frozenset({"decay"})


class Lora(StrictModel):
    """Low-rank adapters, with ``method: lora``."""

    rank: Annotated[Positive, Field(le=MAX_RANK)] = 16
    """Of the two matrices that are trained in place of each target."""
    alpha: Annotated[Rate, Field(le=1e6)] = 32.0
    """Their product counts ``alpha / rank`` times."""
    dropout: Fraction = 0.0
    """Before them, in training."""
    targets: Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1)] = "all-linear"
    """Names, or ends of names, of linear modules; ``all-linear`` takes all but the output layer."""


class Setting(StrictModel):
    """Everything of training that changes the result, but for data, schedule and snapshot."""

    method: Literal["full", "lora"]
    """Full tuning trains every weight, LoRA low-rank adapters."""
    lr: Rate
    """The highest learning rate, after warm-up and before decay."""
    batch: Positive
    """Samples of one optimizer step, over all workers."""
    template: Literal["paper", "plain", "chat"] | TemplateText = "paper"
    """How a prompt becomes a text: ``paper`` (``###Question: ...``), ``plain`` (as it is), the tokenizer's ``chat``
    template, or a text of your own."""
    loss_on: Literal["completion", "all"] = "completion"
    """The answers alone, or prompts too."""
    max_length: Annotated[Positive, Field(gt=1)] = 2048
    """Tokens of a sample at most."""
    truncation: Literal["right", "left", "drop", "refuse"] = "right"
    """What becomes of a longer sample: it loses its end (``right``), or the beginning of what stands before its last
    answer (``left``; an answer that is longer by itself loses its end and EOS, too), is left out (``drop``), or ends
    the run with an error (``refuse``)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights and computation; with bf16 the optimizer keeps weights in fp32."""
    optimizer: Optimizer = Optimizer()
    """How gradients change weights."""
    warmup_steps: NotNegative = 0
    """Optimizer steps of linear warm-up."""
    seed: Seed = 0
    """Draws the order of samples, dropout and new adapters."""
    lora: Lora = Lora()
    """Of ``method: lora``."""

    @property
    def unused_fields(self) -> frozenset[str]:
        return frozenset() if self.method == "lora" else frozenset({"lora"})


class Schedule(StrictModel):
    """A learning-rate schedule: a function of the step within a horizon (epochs)."""

    name: Literal["constant", "cosine", "linear", "wsd"]
    """Its shape over the horizon; ``wsd`` is warm-up, stable, decay."""
    final: Fraction = 0.0
    """The last learning rate as a fraction of the peak."""
    decay: Annotated[AboveZero, Field(le=1)] = 0.2
    """The fraction of the horizon that wsd spends on decaying, linearly."""

    @property
    def unused_fields(self) -> frozenset[str]:
        return {"constant": frozenset({"final", "decay"}), "wsd": frozenset[str]()}.get(self.name, frozenset({"decay"}))

    @property
    def has_horizon(self) -> bool:
        """Whether the horizon counts: a constant schedule's steps are the same within any."""
        return self.name != "constant"

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
