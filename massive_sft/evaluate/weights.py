"""Loading what is scored: a base model, a full snapshot, or an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from massive_sft import modeling
from massive_sft.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Model


def load_scored(
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
        loaded: Any = modeling.load_model(model, dtype)
    elif (snapshot / "adapter_config.json").is_file():
        loaded = PeftModel.from_pretrained(
            modeling.load_model(model, dtype), str(snapshot), autocast_adapter_dtype=False
        )
        if adapters == "merged":
            loaded = loaded.merge_and_unload()
    elif (snapshot / "config.json").is_file():
        whole = Model(path=str(snapshot), trust_remote_code=model.trust_remote_code)
        loaded = modeling.load_model(whole, dtype)
    else:
        raise InvalidInput(Problem(str(snapshot), "is no snapshot: it has neither config.json nor adapter_config.json"))
    return loaded.requires_grad_(False).eval().to(device)
