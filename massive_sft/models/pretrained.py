"""A base model's weights: loaded in full, or refused."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models.attention import attention_of, meta_model
from massive_sft.models.load_errors import load_error
from massive_sft.models.location import place_of, require_weights, source
from massive_sft.sweep.schema import Model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# DeepSpeed, which transformers imports to save a model, looks for a GPU and warns when there is none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def load_model(
    model: Model,
    dtype: str,
    attention: str = "auto",
    gpu: bool = False,
    packed: bool = False,
    within: AbstractContextManager[None] | None = None,
) -> PreTrainedModel:
    """Load a base model's weights in ``dtype`` (``bf16`` or ``fp32``) on the CPU, in eval mode.

    Args:
        attention, gpu, packed: as ``meta_model``.
        within: what changes where transformers puts the weights.

    Raises:
        InvalidInput: when it cannot be loaded, lacks weights, or is of a kind that is not supported.
    """
    chosen = attention_of(meta_model(model, attention, gpu, packed))
    require_weights(model)
    try:
        with no_progress_bar(), within or nullcontext():
            both: Any = AutoModelForCausalLM.from_pretrained(
                **source(model),
                dtype=DTYPES[dtype],
                attn_implementation=chosen,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise load_error(model, "weights", error) from error
    loaded: PreTrainedModel
    loaded, report = both
    lacking = sorted({*report["missing_keys"], *(str(key) for key, *_ in report["mismatched_keys"])})
    if lacking:
        rule = "lacks weights, or has them in another shape than its configuration says; they would be random"
        raise InvalidInput(Problem(place_of(model), rule, _listed(lacking)))
    return loaded


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Within it transformers shows no progress bars: a sweep loads and saves thousands of times."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Within it weights are saved into a folder: no progress bars, and what the disk refuses is an OSError.

    safetensors raises an error of its own for that, whose text has the number.
    """
    try:
        with no_progress_bar():
            yield
    except SafetensorError as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(folder)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the libraries below do not warn of their own deprecated calls, which users cannot change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers")
        yield


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the names that a model's weights have in its files, by their names in the model; a tied one once.

    transformers keeps some families under the names of their original checkpoints. Weights that are stored in another
    form than the model's are left out.
    """
    weights = dict(model.named_parameters())
    stored = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(weights)).items()}
    return {name: stored[id(weight)] for name, weight in weights.items() if id(weight) in stored}
