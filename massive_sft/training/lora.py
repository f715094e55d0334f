"""LoRA through peft: the one place that imports it for training."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Lora, Setting


def add_adapter(model: PreTrainedModel, setting: Setting) -> nn.Module:
    """Freeze ``model`` and add trainable LoRA matrices, initialised from ``setting.seed``.

    The adapter has the model's dtype; in bf16 the optimizer keeps its float32 master copy.

    Raises:
        InvalidInput: as ``target_problems`` tells.
    """
    lora = setting.lora
    problems = target_problems(model, lora)
    if problems:
        raise InvalidInput(problems)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; a float is fine
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    torch.manual_seed(setting.seed)
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def target_problems(model: PreTrainedModel, lora: Lora) -> list[Problem]:
    """Return why ``lora.targets`` cannot be adapted in a model, which may be on the ``meta`` device.

    A target is a module's name or the end of one, as peft takes it. It must be linear (``nn.Linear``, or GPT-2's
    ``Conv1D``), and its weight its own: an adapter on a tied output layer could not be merged, for the input
    embeddings would move with it.
    """
    if isinstance(lora.targets, str):
        return []
    modules = dict(model.named_modules())
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    shared = {name for name, module in linear.items() if holders[id(module.weight)] > 1}
    problems = []
    for target in lora.targets:
        found = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not found or any(name not in linear for name in found):
            rule = "must name linear modules of the model"
        elif shared & set(found):
            rule = (
                "must not name an output layer that is tied to the embeddings, which merging would move, of the model"
            )
        else:
            continue
        problems.append(Problem("lora.targets", rule, target, _choices(linear.keys() - shared, target)))
    return problems


def drops_out(model: nn.Module) -> bool:
    """Return whether a model that trains draws random numbers in its passes, by what it names so.

    That is dropout, layers left out, noise of a router. Families keep such rates in modules or read them in their
    configurations, under many names, so a rate that no pass reads may be taken for one that is.
    """
    modules = list(model.modules())
    configs = {id(config): config for config in (getattr(module, "config", None) for module in modules)}
    kept = [vars(holder) for holder in (*modules, *configs.values()) if holder is not None]
    rates = (rate for values in kept for name, rate in values.items() if _is_of_chance(name))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _is_of_chance(name: str) -> bool:
    """Return whether an attribute is named as rates of dropout and noise are; those of other heads play no part."""
    return name == "p" or (("drop" in name or "jitter" in name) and not name.startswith(("classifier", "summary")))


def _choices(names: Iterable[str], target: str) -> list[str]:
    """Return what a target could be: modules' own names, and of longer ones those that are close to it."""
    parts = target.count(".") + 1
    own, long = ({".".join(name.split(".")[-n:]) for name in names} for n in (1, parts))
    return sorted(own | set(difflib.get_close_matches(target, long)))
