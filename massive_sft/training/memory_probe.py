"""Whether a micro-batch fits, tried before the first step of several ranks.

One rank alone halves a micro-batch when it runs out of memory. One of several would leave the others waiting in a
collective operation, so each tries the largest one by itself first, and they agree. Where that was not enough, new
workers must go on (``errors.TrainAgain``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from massive_sft.cost.memory import most_gathered
from massive_sft.data.samples import Samples
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.sweep.spec import Layout, TrainingSpec
from massive_sft.training import packing
from massive_sft.training.engine import Engine, free_memory
from massive_sft.training.loss import SummedLoss
from massive_sft.training.ranks import from_all_ranks
from massive_sft.training.recomputing import recompute_activations
from massive_sft.training.shares import full_shape


@dataclass(frozen=True)
class Trial:
    """A layout whose checkpointing is chosen, and a micro-batch: what is tried before the first step."""

    layout: Layout
    limit: packing.Limit


class MemoryProbe:
    """A copy of a module without its weights, which talks to no other rank: its activations are as large as real ones.

    Args:
        module: whose forward returns a summed loss, before an ``Engine`` takes it.
        spec, samples: what it will be trained on.
    """

    def __init__(self, module: SummedLoss, spec: TrainingSpec, samples: Samples):
        without = {id(p): _without_values(p) for p in module.parameters()}
        self._module = copy.deepcopy(module, dict(without))
        self._spec = spec
        self._samples = samples

    def agree(self, engine: Engine, trials: Sequence[Trial]) -> Trial | None:
        """Return the first of trials that need less and less that fits on every rank; None when none does.

        All ranks must call it once, with equal trials. Random states are as before afterwards.
        """
        number = 0
        with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
            self._place(engine.device)
            while number < len(trials) and not self._fits(engine, trials[number]):
                number += 1
        del self._module
        free_memory()
        last = max(from_all_ranks(number))
        return trials[last] if last < len(trials) else None

    def _place(self, device: torch.device) -> None:
        """Give all weights one piece of memory, whose values do not matter."""
        parameters = list(self._module.parameters())
        room = torch.zeros(max(p.numel() * p.element_size() for p in parameters), dtype=torch.uint8, device=device)
        made: dict[int, nn.Parameter] = {}
        for parameter in parameters:
            view = room[: parameter.numel() * parameter.element_size()].view(parameter.dtype).view(parameter.shape)
            made[id(parameter)] = nn.Parameter(view, parameter.requires_grad)
        for module in self._module.modules():
            for name, old in module._parameters.items():
                module._parameters[name] = None if old is None else made[id(old)]
        self._module.to(device)  # what is left: the buffers
        for weight in made.values():
            if weight.requires_grad:  # the engine takes gradients away as they come, too
                weight.register_post_accumulate_grad_hook(_forget_gradient)

    def _fits(self, engine: Engine, trial: Trial) -> bool:
        """Try one forward and backward pass over the longest micro-batch, beside what the first step adds."""
        layout = trial.layout
        recompute_activations(self._module.model, layout)
        first = packing.fullest(self._spec.setting.batch, self._samples.lengths, trial.limit, layout.packing)
        batch = packing.collate(self._samples, first, layout.packing).to(engine.device)
        gathered = min(sum(p.numel() * p.element_size() for p in self._module.parameters()), 2 * most_gathered(layout))
        coming = engine.first_step_bytes() + (gathered if layout.stage == 3 else 0)
        try:
            beside = torch.empty(coming, dtype=torch.uint8, device=engine.device)
            self._module(batch).backward()
            del beside
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True


def _without_values(weight: nn.Parameter) -> nn.Parameter:
    made = torch.empty(full_shape(weight), dtype=weight.dtype, device="meta")
    return nn.Parameter(made, weight.requires_grad)


def _forget_gradient(weight: Any) -> None:
    weight.grad = None
