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
    """``clip`` is the largest gradient norm; ``none`` or null clips nothing (an overlay can only say ``none``).

    ``decay`` says which weights ``weight_decay`` is for: ``matrices``, without biases and the weights of norms, as in
    transformers' Trainer, or ``all``.
    """

    name: Literal["adamw"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[Rate, Field(le=1)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    decay: Literal["matrices", "all"] = "matrices"
    clip: Annotated[Annotated[AboveZero, Field(le=1e30)] | None, BeforeValidator(none_is_null)] = 1.0

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
