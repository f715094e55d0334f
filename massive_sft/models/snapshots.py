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
    elif (snapshot / "adapter_config.json").is_file():
        base = pretrained.load_model(model, dtype)
        with pretrained.quiet():
            loaded = PeftModel.from_pretrained(base, str(snapshot), autocast_adapter_dtype=False)
        if adapters == "merged":
            _untie(loaded)
            loaded = loaded.merge_and_unload()
    elif (snapshot / "config.json").is_file():
        whole = Model(path=str(snapshot), trust_remote_code=model.trust_remote_code)
        loaded = pretrained.load_model(whole, dtype)
    else:
        raise InvalidInput(Problem(str(snapshot), "is no snapshot: it has neither config.json nor adapter_config.json"))
    return loaded.requires_grad_(False).eval().to(device)


def _untie(adapted: PeftModel) -> None:
    """Give each adapted weight that another module shares a copy of its own.

    An output layer's may be tied to the embeddings, which would move with it when the adapter is merged. No such target
    is trained any more; adapters of earlier versions may have it.
    """
    config: Any = adapted.get_base_model().config
    holders = Counter(id(weight) for _, weight in adapted.named_parameters(remove_duplicate=False))
    for module in adapted.modules():
        base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if base is not None and holders[id(base.weight)] > 1:
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
