"""The refusal of models and tokenizers that run code of another repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Model


def refuse_foreign_code(model: Model, arguments: Mapping[str, Any]) -> None:
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
