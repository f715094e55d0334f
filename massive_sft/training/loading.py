"""What a training loads before its first step, checked against what it will see."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
from peft import PeftModel

from massive_sft.core.errors import InvalidInput, Problem, Unsupported
from massive_sft.data.samples import Samples
from massive_sft.models import pretrained
from massive_sft.models.attention import meta_model
from massive_sft.models.configuration import positions_of
from massive_sft.models.device import device_of
from massive_sft.models.location import place_of
from massive_sft.models.tokenizer import token_problems
from massive_sft.sweep.schema import Model
from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training import lora
from massive_sft.training.deepspeed_engine import partitioned_loading
from massive_sft.training.engine import Engine
from massive_sft.training.loss import packs_cleanly
from massive_sft.training.one_reader import read_once
from massive_sft.training.recomputing import recompute_activations
from massive_sft.training.shares import full_shape


def require_no_problems(problems: list[Problem]) -> None:
    """Raise InvalidInput when there are problems."""
    if problems:
        raise InvalidInput(problems)


def sample_problems(samples: Samples) -> list[Problem]:
    """Return why samples cannot be trained on at all."""
    if len(samples) == 0:
        return [Problem("samples", "must not be empty")]
    trainable = samples.trainable_lengths
    if samples.lengths.min() < 2 or trainable.min() == 0:
        return [Problem("samples", "must each have a trainable token", int(np.sum(trainable == 0)))]
    if samples.trainable[samples.offsets[:-1]].any():
        return [Problem("samples", "must not train on their first token, which nothing predicts")]
    return []


class Bases(Protocol):
    """What gives a training its base."""

    def load(self, model: Model, dtype: str, attention: str, gpu: bool, packed: bool) -> Any:
        """Return a model that nobody else trains the weights of; arguments and errors as ``pretrained.load_model``."""
        ...


def load_for_training(spec: TrainingSpec, samples: Samples, bases: Bases | None = None) -> Any:
    """Load the base in the training dtype, checked against the samples, with adapters for LoRA.

    At stage 3 each rank gets its share of the weights, on its device. Else all of them: one worker on the CPU, each of
    several on its device, from rank 0, which alone reads the files.

    Args:
        bases: gives a copy of the base; without it, and at stage 3, it is read from its files. Only rank 0's is asked.

    Raises:
        InvalidInput: when the samples do not fit the model.
        Unsupported: when its kind cannot be packed; at stage 3 ``require_clean_packing_at_stage_3``
            tells, once there is an engine.
    """
    layout = spec.layout
    model = _load_base(spec, bases)
    rows = full_shape(model.get_input_embeddings().weight)[0]
    problems = token_problems(spec.model, rows, int(samples.tokens.max()))
    positions = positions_of(model.config)
    if positions and samples.lengths.max() > positions:
        problems.append(
            Problem("max_length", f"must be at most the model's {positions} positions", int(samples.lengths.max()))
        )
    require_no_problems(problems)
    if layout.packing and layout.stage != 3:
        # Where it will train: FlashAttention knows no CPU, and for one flex_attention would be compiled apart.
        require_clean_packing(spec, model.to(device_of(layout.gpus > 0)))
    recompute_activations(model, layout)
    return lora.add_adapter(model, spec.setting) if spec.setting.method == "lora" else model


def _load_base(spec: TrainingSpec, bases: Bases | None) -> Any:
    layout = spec.layout
    computed = (layout.attention, layout.gpus > 0, layout.packing)
    wanted = (spec.model, spec.setting.precision, *computed)
    if layout.stage == 3:
        return pretrained.load_model(*wanted, partitioned_loading(spec.setting, layout))
    load = partial(pretrained.load_model if bases is None else bases.load, *wanted)
    if layout.workers == 1:
        return load()
    return read_once(load, partial(meta_model, spec.model, *computed), device_of(layout.gpus > 0))


def require_clean_packing(spec: TrainingSpec, model: Any) -> None:
    """Refuse packing for a model that sees across samples, in eval mode, where it will train. Raises Unsupported."""
    if not packs_cleanly(model, full_shape(model.get_input_embeddings().weight)[0]):
        raise Unsupported(f"{place_of(spec.model)}: this kind of model sees across packed samples; set packing: false")


def require_clean_packing_at_stage_3(spec: TrainingSpec, model: Any, engine: Engine) -> None:
    """As ``require_clean_packing``, of a model that an engine has, whose hooks fetch its weights. All ranks call it."""
    model.eval()
    require_clean_packing(spec, model.get_base_model() if isinstance(model, PeftModel) else model)
    model.train()
    engine.discard_gradients()  # of which there are none; ZeRO forgets the order of the layers in these passes
