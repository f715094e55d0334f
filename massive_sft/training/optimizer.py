"""AdamW over the trained weights, and which of them decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from massive_sft.sweep.schema import Optimizer
from massive_sft.training.shares import full_shape


def parameter_groups(module: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the trained parameters in the groups that ``weight_decay`` asks for; none is empty.

    With ``decay: matrices`` biases and the weights of norms, which have one dimension, stay without: the rule of
    transformers' Trainer (``get_decay_parameter_names``) and so of TRL. All of an adapter are matrices.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not optimizer.weight_decay or optimizer.decay == "all":
        return [{"params": trained}]
    matrices = [parameter for parameter in trained if len(full_shape(parameter)) > 1]
    others = [parameter for parameter in trained if len(full_shape(parameter)) < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optimizer: Optimizer, lr: float) -> torch.optim.AdamW:
    """Return torch's AdamW over the trained parameters of ``module``, with every field of the setting.

    Its kernel is the fused one: the fastest on a GPU, and on the CPU, where the states are with offload, as well.
    """
    return torch.optim.AdamW(
        parameter_groups(module, optimizer),
        lr=lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
