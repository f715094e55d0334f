"""A model's configuration: loaded, and refused where training cannot handle such a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models.foreign_code import refuse_foreign_code
from massive_sft.models.load_errors import load_error
from massive_sft.models.location import place_of, source
from massive_sft.sweep.schema import Model


def load_config(model: Model) -> Any:
    """Load a model's configuration.

    Raises:
        InvalidInput: there is none, or it runs code of another repository.
    """
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise InvalidInput(Problem(model.path, "is no model folder: it has no config.json"))
    try:
        refuse_foreign_code(model, source(model))
        return AutoConfig.from_pretrained(**source(model))
    except (OSError, ValueError, KeyError) as error:
        raise load_error(model, "configuration", error) from error


def unsupported(model: Model, config: Any) -> list[Problem]:
    """Return why a base model cannot be trained here.

    Refused are encoder-decoders, models of more than text, mixtures of experts and quantised weights.
    """
    place = place_of(model)
    problems = []
    if getattr(config, "is_encoder_decoder", False):
        problems.append(Problem(place, "is an encoder-decoder; only decoder-only models are trained"))
    problems += [
        Problem(place, f"is a model of more than text ({name}); only text models are trained: name a text-only one")
        for name in ("vision_config", "audio_config")
        if getattr(config, name, None) is not None
    ]
    text = config.get_text_config()
    experts = [
        name
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        if (getattr(text, name, None) or 0) > 1
    ]
    if experts:
        problems.append(
            Problem(
                place,
                f"is a mixture of experts ({experts[0]}), which is not supported; use a dense model",
                getattr(text, experts[0]),
            )
        )
    if getattr(config, "quantization_config", None):
        problems.append(Problem(place, "has quantised weights, which cannot be tuned; use the unquantised base"))
    return problems


def length_borders(config: Any) -> tuple[int, ...]:
    """Return the lengths, ascending, beyond which a model computes positions otherwise (longrope's long factors).

    The longest sequence of a batch decides for all of it, so none may have sequences on both sides of a border. Empty
    for nearly all models.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]  # one for all layers, or one for each kind
    found = {one["original_max_position_embeddings"] for one in kinds if one.get("rope_type") == "longrope"}
    return tuple(sorted(found))


def positions_of(config: Any) -> int | None:
    """Return the longest sequence, in tokens, that a configuration declares; None where it declares none."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    return next((int(value) for value in found if value), None)
