"""Models whose passes run out of memory, for real calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from massive_sft.models import pretrained
from massive_sft.training import loading


class SmallMemory:
    """Makes passes fail as a GPU's allocator does: once for every micro-batch of more than ``rows`` or ``tokens``.

    The first ``passes`` of each model succeed, as where memory gets scarce later. ``ways``: those of checkpointing for
    which there is room at all.
    """

    def __init__(
        self,
        rows: float = math.inf,
        tokens: float = math.inf,
        backward: bool = False,
        passes: int = 0,
        ways: Sequence[Any] = (False, "selective", True),
    ):
        self.rows, self.tokens, self.backward, self.passes, self.raised = rows, tokens, backward, passes, 0
        self.ways = ways

    def attach(self, model: Any) -> None:
        """Give a model room for so much."""
        layer = model.get_decoder().layers[0]
        hook = layer.mlp.register_full_backward_hook if self.backward else layer.register_forward_pre_hook
        hook(self._refuse)

    def _refuse(self, module: Any, tensors: Any, *_: Any) -> None:
        rows, width = tensors[0].shape[:2]
        self.passes -= 1
        large = rows > self.rows or rows * width > self.tokens or _way(module) not in self.ways
        if self.passes < 0 and large:
            self.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def __enter__(self) -> SmallMemory:
        """Within it every model that is loaded, or made for what another rank loads, has room for so much."""
        self._load, self._make = pretrained.load_model, loading.meta_model

        def attached(make: Callable[..., Any], *arguments: Any) -> Any:
            model = make(*arguments)
            self.attach(model)
            return model

        pretrained.load_model = partial(attached, self._load)  # type: ignore[assignment]
        loading.meta_model = partial(attached, self._make)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        pretrained.load_model, loading.meta_model = self._load, self._make


def _way(layer: Any) -> bool | str:
    """Return a layer's ``gradient_checkpointing``."""
    if not getattr(layer, "gradient_checkpointing", False):
        return False
    return "selective" if "context_fn" in layer._gradient_checkpointing_func.keywords else True
