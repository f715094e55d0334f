"""Base models and tokenizers through transformers, and the refusal of what training cannot handle."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# transformers imports DeepSpeed, which looks for a GPU when it is imported and warns when there is none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models import hub
from massive_sft.sweep import weight_files
from massive_sft.sweep.schema import Model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def source(model: Model) -> dict[str, Any]:
    """Return the ``from_pretrained`` arguments of a model: a folder on this node, or a hub id with its revision."""
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        return {
            "pretrained_model_name_or_path": str(folder),
            "local_files_only": True,
            "trust_remote_code": model.trust_remote_code,
        }
    return {
        "pretrained_model_name_or_path": model.hub,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }


def device_of(gpu: bool) -> str:
    """Return what computes where the sweep's ``resources`` give a GPU, or none: ``cuda`` or ``cpu``.

    A GPU that nobody was given is left alone: other processes may have it.

    Raises:
        InvalidInput: a GPU was given, but torch can use none here.
    """
    if gpu and not torch.cuda.is_available():
        raise InvalidInput(Problem("resources.gpus", "must be 0: this machine has no GPU that torch can use"))
    return "cuda" if gpu else "cpu"


def place_of(model: Model) -> str:
    return str(model.path or model.hub)


def _refusal(model: Model, what: str, error: Exception) -> InvalidInput:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not model.trust_remote_code and "trust_remote_code" in str(error):
        rule = f"needs code of its own to load its {what}: read it, and allow it with trust_remote_code: true"
        return InvalidInput(Problem(place_of(model), rule))
    return InvalidInput(Problem(place_of(model), f"is no model that transformers can load: {what}: {first_line}"))


def load_config(model: Model) -> Any:
    """Load a model's configuration.

    Raises:
        InvalidInput: there is none, or it runs code of another repository.
    """
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise InvalidInput(Problem(model.path, "is no model folder: it has no config.json"))
    try:
        _refuse_foreign_code(model, source(model))
        return AutoConfig.from_pretrained(**source(model))
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(model, "configuration", error) from error


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


def _refuse_foreign_code(model: Model, arguments: Mapping[str, Any]) -> None:
    """Refuse code of another repository than the model's or tokenizer's, which no id of its content covers.

    Without ``trust_remote_code`` transformers runs none, and refuses what needs some.

    Args:
        arguments: of ``from_pretrained``.

    Raises:
        InvalidInput: likewise.
    """
    if not model.trust_remote_code:
        return
    where = {name: value for name, value in arguments.items() if name != "trust_remote_code"}
    try:
        configuration, _ = PretrainedConfig.get_config_dict(**where)
    except OSError:  # a tokenizer's folder need not have one
        configuration = {}
    maps = [configuration.get("auto_map"), get_tokenizer_config(**where).get("auto_map")]
    foreign = sorted({code for one in maps for code in _code_of(one) if "--" in code})
    if foreign:
        rule = "runs code of another repository, which may change; copy it into the model's folder and name it there"
        place = str(arguments["pretrained_model_name_or_path"])
        raise InvalidInput(Problem(place, f"{rule} (auto_map)", ", ".join(foreign)))


def _code_of(auto_map: Any) -> Iterator[str]:
    """Yield what an ``auto_map`` names, or an older tokenizer's list: ``file.Class``, ``owner/name--file.Class``."""
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    for value in values:
        yield from (str(code) for code in (value if isinstance(value, list | tuple) else [value]) if code)


def positions_of(config: Any) -> int | None:
    """Return the longest sequence, in tokens, that a configuration declares; None where it declares none."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    return next((int(value) for value in found if value), None)


def token_problems(model: Model, rows: int, largest: int) -> list[Problem]:
    """Return the problem of a token id that a model has no embedding for.

    Args:
        rows: of the model's input embeddings, ``model.get_input_embeddings().weight.shape[0]``.
        largest: token id that its tokenizer gave.
    """
    rule = f"must know every token id of its tokenizer, below {rows}"
    return [Problem(place_of(model), rule, largest)] if largest >= rows else []


def meta_model(model: Model, attention: str = "auto", gpu: bool = False) -> PreTrainedModel:
    """Make a model without its weights, on the ``meta`` device, with the attention that it is computed with.

    Takes well below a second at any size. ``auto`` takes what computes the family's attention exactly: sdpa; where
    logits are soft-capped, which sdpa ignores, flex_attention on a GPU and eager elsewhere; eager for a family without
    these.

    Args:
        model: its ``config.json`` is read, not its weights.
        attention: ``auto``, or transformers' name of an implementation.
        gpu: whether it will train on a GPU. Scores are made without flex_attention, which would be compiled again and
            again while a generation grows.

    Returns:
        The model; ``attention_of`` tells which implementation it has.

    Raises:
        InvalidInput: it is of a kind that is not supported, or cannot be computed exactly with ``attention``.
    """
    config = load_config(model)
    problems = unsupported(model, config)
    if problems:
        raise InvalidInput(problems)
    if model.hub is not None:  # a local folder's files are read, and refused, when its content is hashed
        _require_weights(model)
    capped = bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))
    if capped and attention == "sdpa":
        rule = "soft-caps its attention's logits, which sdpa ignores; use auto, or eager"
        raise InvalidInput(Problem(place_of(model), rule, attention))
    if attention != "auto":
        return _on_meta(model, config, attention)
    first = ("flex_attention" if gpu else "eager") if capped else "sdpa"
    try:
        return _on_meta(model, config, first)
    except InvalidInput:
        return _on_meta(model, config, "eager")


def attention_of(model: Any) -> str:
    """Return the attention implementation that a model computes with."""
    return str(model.config._attn_implementation)


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the names that a model's weights have in its files, by their names in the model; a tied one once.

    transformers keeps some families under the names of their original checkpoints. Weights that are stored in another
    form than the model's are left out.
    """
    weights = dict(model.named_parameters())
    stored = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(weights)).items()}
    return {name: stored[id(weight)] for name, weight in weights.items() if id(weight) in stored}


def _on_meta(model: Model, config: Any, attention: str) -> PreTrainedModel:
    flash = attention == "flash_attention_2"
    if flash and importlib.util.find_spec("flash_attn") is None:
        rule = "cannot be computed with flash_attention_2: the package flash-attn is not installed; use auto"
        raise InvalidInput(Problem(place_of(model), rule))
    try:
        with torch.device("meta"):
            # FlashAttention asks for a GPU, which the machine that checks need not have.
            made: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                attn_implementation="eager" if flash else attention,
                trust_remote_code=model.trust_remote_code,
            )
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _refusal(model, f"with attention {attention}", error) from error
    if flash and not getattr(made, "_supports_flash_attn", False):
        raise InvalidInput(Problem(place_of(model), "is of a family without flash_attention_2; use auto", attention))
    made.config._attn_implementation = attention
    return made


def load_tokenizer(model: Model) -> PreTrainedTokenizerFast:
    """Load a model's fast tokenizer.

    Raises:
        InvalidInput: when there is none, or it has no character offsets (a slow tokenizer), or it has no EOS, or it
            runs code of another repository.
    """
    arguments = source(model)
    if model.tokenizer is not None:
        arguments["pretrained_model_name_or_path"] = model.tokenizer
    place = model.tokenizer or place_of(model)
    # Batches are short and many; the tokenizer's own threads would fight with the workers' for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _refuse_foreign_code(model, arguments)
        tokenizer: Any = AutoTokenizer.from_pretrained(**arguments, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(model, "tokenizer", error) from error
    problems = []
    if not tokenizer.is_fast:
        problems.append(
            Problem(
                place,
                "has a slow tokenizer without character offsets, which the loss mask needs; "
                "convert it to a tokenizer.json",
            )
        )
    if tokenizer.eos_token_id is None:
        problems.append(
            Problem(place, "has a tokenizer without an end-of-sequence token, which a sample must end with")
        )
    if problems:
        raise InvalidInput(problems)
    return tokenizer


def load_model(model: Model, dtype: str, attention: str = "auto", gpu: bool = False) -> PreTrainedModel:
    """Load a base model's weights in ``dtype`` (``bf16`` or ``fp32``) on the CPU, in eval mode.

    Args:
        attention, gpu: as ``meta_model``.

    Raises:
        InvalidInput: when it cannot be loaded, lacks weights, or is of a kind that is not supported.
    """
    chosen = attention_of(meta_model(model, attention, gpu))
    _require_weights(model)
    try:
        with no_progress_bar():
            both: Any = AutoModelForCausalLM.from_pretrained(
                **source(model),
                dtype=DTYPES[dtype],
                attn_implementation=chosen,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _refusal(model, "weights", error) from error
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


def _require_weights(model: Model) -> None:
    """Refuse weight files on this node that are missing, broken or an adapter's. Raises InvalidInput."""
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        weight_files.find(Path(folder))


def weight_paths(model: Model) -> list[Path]:
    """Return the files that a model's weights are loaded from; a hub model's are downloaded when they are not cached.

    Raises:
        InvalidInput: there are none, they are broken, or the hub cannot give them.
    """
    folder = model.path or hub.pinned_folder(model)
    if folder is None:
        pinned = hub.resolve(hub.repository_of(model, place_of(model)))
        folder = hub.download(pinned)
    return weight_files.find(Path(folder))
