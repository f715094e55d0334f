"""LoRA through peft: the one place that imports it for training."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from massive_sft.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Setting


def add_adapter(model: PreTrainedModel, setting: Setting) -> nn.Module:
    """Freeze ``model`` and add trainable LoRA matrices, initialised from ``setting.seed``.

    The adapter has the model's dtype; in bf16 the optimizer keeps its float32 master copy.

    Raises:
        InvalidInput: when no module has a name in ``setting.lora.targets``.
    """
    lora = setting.lora
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; a float is fine
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    _refuse_unknown_targets(model, lora.targets)
    torch.manual_seed(setting.seed)
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _refuse_unknown_targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    if isinstance(targets, str):
        return
    names = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    unknown = [target for target in targets if target.rsplit(".", 1)[-1] not in names]
    if unknown:
        raise InvalidInput(
            [Problem("lora.targets", "must name linear modules of the model", target, names) for target in unknown]
        )
