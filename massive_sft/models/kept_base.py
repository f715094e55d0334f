"""A base model's weights as a lane keeps them between its trainings: read once, copied for each."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from massive_sft.models import pretrained
from massive_sft.models.host_memory import may_keep
from massive_sft.models.location import file_states
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.sweep.schema import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Base:
    """An untouched model on the CPU, and what it was loaded by."""

    key: tuple[Any, ...]
    model: PreTrainedModel


class KeptBase:
    """Loads base models as ``pretrained.load_model`` does; the last one is kept, and a second training gets a copy.

    A copy is the module as it was loaded, with the same bits in every weight and buffer. What is kept takes as much
    memory of the host as the weights do, and is kept only where that is a small part of what is free
    (``host_memory``). Another base, another dtype or attention, or files that changed take its place.
    """

    def __init__(self) -> None:
        self._base: _Base | None = None

    def load(self, model: Model, dtype: str, attention: str, gpu: bool, packed: bool) -> PreTrainedModel:
        """Return a model on the CPU that nobody else has. Arguments and errors as of ``pretrained.load_model``."""
        files = file_states(model)
        key = (model, files, dtype, attention, gpu, packed)
        known = self._base
        if known is not None and known.key == key:
            copied = _copied(known.model)
            if copied is not None:
                return copied
        self.release()
        loaded = pretrained.load_model(model, dtype, attention, gpu, packed)
        # Code of the model's own may have more state than its weights.
        if files is not None and not model.trust_remote_code:
            # The copy is kept, not what was loaded: that may be pages of a file, which the system may forget.
            copied = _copied(loaded)
            self._base = None if copied is None else _Base(key, copied)
        return loaded

    def release(self) -> None:
        """Let go of what is kept."""
        self._base = None


def _copied(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a copy of a model; None where memory is too scarce for it."""
    if not may_keep(model.get_memory_footprint()):
        return None
    try:
        return copy.deepcopy(model)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("the base model is not kept for the next training: %s", error)
        return None
