"""One rank by torch alone: float32 sums of gradients, float32 master weights, torch's fused AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from massive_sft.core.errors import Corrupt
from massive_sft.models.device import unused_bytes
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.optimizer import adamw
from massive_sft.training.packing import MicroBatch

_STATE = "plain.pt"
_CLIP_EPSILON = 1e-6  # that of torch.nn.utils.clip_grad_norm_ and of DeepSpeed
# What DeepSpeed's universal checkpoint has of each weight, and what AdamW calls it.
_UNIVERSAL = {"exp_avg.pt": "exp_avg", "exp_avg_sq.pt": "exp_avg_sq"}


class PlainEngine:
    """An ``engine.Engine`` of one rank.

    In bf16 AdamW updates a float32 master copy of each trained weight, whose gradient is the float32 sum to which the
    weight's own is added as soon as it is there: 18 bytes a trained weight. In fp32 a weight is its own master: 16.

    Args:
        module: on the CPU, in the training dtype; parameters that require gradients are trained.
        setting, layout: what to compute, and where.
    """

    ranks = 1

    def __init__(self, module: nn.Module, setting: Setting, layout: Layout):
        self.device = torch.device("cuda", torch.cuda.current_device()) if layout.gpus else torch.device("cpu")
        self._module = module.to(self.device).train()
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._names: list[str] = list(trained)
        self._weights: list[torch.Tensor] = list(trained.values())
        self.parameters = sum(weight.numel() for weight in module.parameters())
        self.trained = sum(weight.numel() for weight in self._weights)
        self._clip = setting.optimizer.clip
        self._optimizer = adamw(module, setting.optimizer, setting.lr)
        self._masters = self._weights
        self._hooks: list[RemovableHandle] = []
        self._has_copies = setting.precision != "fp32"
        if self._has_copies:
            self._make_masters()

    def _make_masters(self) -> None:
        """Have the optimizer update float32 copies of the weights, whose gradients are the float32 sums."""
        copies = {weight: nn.Parameter(weight.detach().float()) for weight in self._weights}
        for group in self._optimizer.param_groups:
            group["params"] = [copies[weight] for weight in group["params"]]
        self._masters = list(copies.values())
        for weight, master in copies.items():
            total = master.grad = torch.zeros_like(master)
            self._hooks.append(weight.register_post_accumulate_grad_hook(_adder(total)))

    def accumulate(self, batches: Sequence[MicroBatch], target_total: int) -> torch.Tensor:
        """See ``Engine.accumulate``."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            loss = self._module(batch.to(self.device))
            (loss * (1 / target_total)).backward()
            total += loss.detach().double()
        return total

    def step(self, lr: float) -> float:
        """See ``Engine.step``."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        gradients = self._gradients()
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(total)
        if math.isfinite(norm):
            if self._clip and norm > self._clip:
                torch._foreach_mul_(gradients, self._clip / (total + _CLIP_EPSILON))
            self._optimizer.step()
            self._copy_to_weights()
        self.discard_gradients()
        return norm

    def _gradients(self) -> list[torch.Tensor]:
        return [master.grad for master in self._masters if master.grad is not None]

    @torch.no_grad()
    def _copy_to_weights(self) -> None:
        if self._has_copies:
            torch._foreach_copy_(self._weights, self._masters)

    def discard_gradients(self) -> None:
        """See ``Engine.discard_gradients``."""
        for weight in self._weights:
            weight.grad = None
        if self._has_copies:
            torch._foreach_zero_(self._gradients())

    def save(self, folder: Path) -> None:
        """See ``Engine.save``: one file, with weights by their names."""
        folder.mkdir(parents=True, exist_ok=True)
        masters = {name: master.detach() for name, master in zip(self._names, self._masters, strict=True)}
        torch.save({"masters": masters, "optimizer": self._optimizer.state_dict()}, folder / _STATE)

    def load(self, folder: Path, universal: bool = False) -> None:
        """See ``Engine.load``."""
        if universal:
            self._load_universal(folder / "zero")
            return
        try:
            state = torch.load(folder / _STATE, map_location=self.device, weights_only=True)
        except FileNotFoundError as error:
            raise Corrupt(f"{folder}: has no {_STATE}") from error
        self._set_masters(state["masters"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _load_universal(self, folder: Path) -> None:
        """Read what DeepSpeed keeps of each weight of stages 1 and 2: a folder of its name, a file for each number."""

        def read(name: str, file: str) -> Any:
            return torch.load(folder / name / file, map_location=self.device, weights_only=True)

        self._set_masters({name: read(name, "fp32.pt")["param"] for name in self._names})
        for name, master in zip(self._names, self._masters, strict=True):
            moments = {key: read(name, file)["param"].view_as(master) for file, key in _UNIVERSAL.items()}
            self._optimizer.state[master] = {"step": read(name, "step.pt").float().to(self.device), **moments}

    @torch.no_grad()
    def _set_masters(self, values: dict[str, torch.Tensor]) -> None:
        for name, master in zip(self._names, self._masters, strict=True):
            master.copy_(values[name].view_as(master))
        self._copy_to_weights()

    def free_bytes(self) -> int:
        """See ``Engine.free_bytes``."""
        return unused_bytes(self.device) - self.first_step_bytes()

    def first_step_bytes(self) -> int:
        """See ``Engine.first_step_bytes``: AdamW's two float32 moments, and in fp32 the gradients."""
        return (8 if self._has_copies else 12) * self.trained

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """See ``Engine.gathered``: they always have them."""
        yield

    def close(self) -> None:
        """See ``Engine.close``."""
        for hook in self._hooks:
            hook.remove()
        self.discard_gradients()
        del self._module, self._optimizer, self._masters, self._weights, self._names


def _adder(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Return what adds a weight's gradient to ``total`` and lets go of it."""

    def add(weight: torch.Tensor) -> None:
        if weight.grad is not None:
            total.add_(weight.grad)
        weight.grad = None

    return add
