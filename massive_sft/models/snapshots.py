"""Loading what is scored: a base model, a full snapshot, or an adapter on its base."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.models import pretrained
from massive_sft.sweep.schema import Model
from massive_sft.sweep.weight_files import ADAPTER


def load_for_scoring(
    model: Model,
    snapshot: Path | None,
    dtype: str,
    adapters: str = "unmerged",
    device: str | torch.device = "cpu",
) -> Any:
    """Load a model to score, in eval mode, without gradients.

    Args:
        model: the base.
        snapshot: a snapshot folder (checked by the caller), or ``None`` for the base itself. With an
            ``adapter_config.json`` it is a LoRA adapter, else a whole model.
        dtype: ``bf16`` or ``fp32``, of the base's and the snapshot's weights.
        adapters: ``unmerged``, or ``merged``: added to the base's weights in ``dtype``, which loses most of a small
            change in bf16.
        device: where to put it.

    Raises:
        InvalidInput: the base or the snapshot cannot be loaded.
    """
    if snapshot is None:
        loaded: Any = pretrained.load_model(model, dtype)
    elif (snapshot / ADAPTER).is_file():
        loaded = with_adapter(pretrained.load_model(model, dtype), snapshot)
        if adapters == "merged":
            _untie(loaded)
            loaded = loaded.merge_and_unload()
    elif (snapshot / "config.json").is_file():
        loaded = pretrained.load_model(whole_model(model, snapshot), dtype)
    else:
        raise InvalidInput(Problem(str(snapshot), f"is no snapshot: it has neither config.json nor {ADAPTER}"))
    return loaded.requires_grad_(False).eval().to(device)


def whole_model(base: Model, snapshot: Path) -> Model:
    """Return the folder of a full snapshot as a model."""
    return Model(path=str(snapshot), trust_remote_code=base.trust_remote_code)


def with_adapter(base: Any, snapshot: Path) -> PeftModel:
    """Put an adapter around the layers of a base, in the base's dtype."""
    with pretrained.quiet():
        adapted: PeftModel = PeftModel.from_pretrained(base, str(snapshot), autocast_adapter_dtype=False)
    return adapted


def _untie(adapted: PeftModel) -> None:
    """Give each adapted weight that another module shares a copy of its own.

    An output layer's may be tied to the embeddings, which would move with it when the adapter is merged. No such target
    is trained any more; adapters of earlier versions may have it.
    """
    config: Any = adapted.get_base_model().config
    for base in shared_layers(adapted):
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def adapted_layers(adapted: PeftModel) -> dict[str, Any]:
    """Return the base's layers that an adapter is on, by their names in the base."""
    found = {name: module for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    return {name: module.get_base_layer() for name, module in found.items()}


def shared_layers(adapted: PeftModel) -> list[Any]:
    """Return those of the adapted layers whose weight another module has as well."""
    holders = Counter(id(weight) for _, weight in adapted.named_parameters(remove_duplicate=False))
    return [layer for layer in adapted_layers(adapted).values() if holders[id(layer.weight)] > 1]
