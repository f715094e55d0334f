"""A model that stays in memory from one scored cell to the next of the same base; what differs is copied into it.

An adapter is copied into the layers of the one before, or put around the base's; a full snapshot's tensors are copied
into the module that is there. So the weights are bit by bit those of a model that is loaded anew, and its scores too.
Each change is proven: below an adapter the base must answer a fixed request as it did when it was loaded, and what was
copied must equal its files. Where it does not the model is loaded anew.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers.core_model_loading import revert_weight_conversion

from massive_sft.core.errors import InvalidInput, MassiveSFTError
from massive_sft.models import snapshots
from massive_sft.models.configuration import load_config
from massive_sft.models.host_memory import may_keep
from massive_sft.models.location import file_states, place_of
from massive_sft.models.tree_support import depends_on_length
from massive_sft.sweep import weight_files
from massive_sft.sweep.schema import Model
from massive_sft.sweep.weight_files import ADAPTER

log = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]
_CANARY_TOKENS = 8
# What a configuration says of where it comes from, and of what is chosen when a model is loaded.
_FREE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}


class NotCopied(MassiveSFTError):
    """Weights cannot be copied into the module that is there, or were not copied well; the text says why."""


# Of a change, whose files may be broken as well, which a load then says in a sentence.
_FAILURES = (NotCopied, InvalidInput, SafetensorError, RuntimeError, MemoryError, OSError, ValueError)


def read_tensors(snapshot: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's files by their names there. They stay on the disk until they are used.

    Raises InvalidInput, OSError or SafetensorError where they cannot be read.
    """
    is_adapter = (snapshot / ADAPTER).is_file()
    paths = [snapshot / "adapter_model.safetensors"] if is_adapter else weight_files.find(snapshot)
    found: dict[str, torch.Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return found


@dataclass
class _Warm:
    """The module that is there.

    Attributes:
        key: the base, its files, the precision and the device.
        module: the base's own; its layers are wrapped while there is an adapter.
        configuration: what a full snapshot's must equal.
        canary: what the base answers to a fixed request; None where the base was never there.
        holds: whose weights are in the module, an adapter apart: the ``base``'s, with an adapter ``merged`` into them,
            or a full ``snapshot``'s.
        base: copies of the base's weights that were written over, by name; empty where they were not kept.
        adapter: the adapter that is there, and its configuration.
    """

    key: tuple[Any, ...]
    module: Any
    configuration: dict[str, Any]
    canary: torch.Tensor | None
    holds: str
    base: dict[str, torch.Tensor] = field(default_factory=dict)
    adapter: tuple[PeftModel, dict[str, Any]] | None = None

    @property
    def has_base(self) -> bool:
        """Whether the base's weights are in the module, or can be put back."""
        return self.holds == "base" or bool(self.base)

    def put_base(self) -> Any:
        """Return the base. Raises NotCopied."""
        self._restore()
        self._prove_base(self.module)
        return self.module

    def put_adapter(self, snapshot: Path, tensors: Tensors, merged: bool) -> Any:
        """Return the base with an adapter. Raises NotCopied."""
        config = _adapter_configuration(snapshot)
        if self.adapter is None or self.adapter[1] != config:
            self._restore()
            self.adapter = snapshots.with_adapter(self.module, snapshot), config
        adapted = self.adapter[0]
        _copy(_adapter_weights(adapted), tensors)
        with adapted.disable_adapter():
            self._prove_base(adapted)
        if not merged:
            return adapted
        if snapshots.shared_layers(adapted):
            raise NotCopied("the adapter is on a weight that another module has as well")
        layers = snapshots.adapted_layers(adapted).items()
        self._keep({f"{name}.{own}": weight for name, layer in layers for own, weight in layer.named_parameters()})
        self.holds, self.adapter = "merged", None
        return adapted.merge_and_unload()

    def put_snapshot(self, tensors: Tensors, keeps_base: bool) -> Any:
        """Return the module with a full snapshot's weights. Raises NotCopied.

        Args:
            keeps_base: whether the base's weights will be asked for again.
        """
        if self.adapter is not None or self.holds == "merged":
            self._restore()
        if self.holds == "base":
            if keeps_base:
                self._keep(_state(self.module))
            else:
                self.base.clear()
        self.holds = "snapshot"
        _copy(_stored(self.module), tensors)
        return self.module

    def _restore(self) -> None:
        """Take the adapter away and put the base's weights back, where they were written over."""
        if self.adapter is not None:
            self.adapter[0].unload()
            self.adapter = None
        if self.holds != "base":
            weights = _state(self.module)
            _copy({name: weights[name] for name in self.base}, self.base)
            self.holds = "base"

    def _keep(self, weights: Tensors) -> None:
        """Keep copies of the base's weights that are about to be written over, where the host has room for them."""
        missing = {name: tensor for name, tensor in weights.items() if name not in self.base}
        if may_keep(sum(tensor.nbytes for tensor in missing.values())):
            self.base |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in missing.items()}
        else:
            self.base.clear()

    def _prove_base(self, model: Any) -> None:
        """Raise NotCopied unless a model, the base or one with its adapter off, answers as the base did when loaded."""
        if self.canary is None or not _same_bits(_answer(model), self.canary):
            raise NotCopied("the base answers a fixed request otherwise than when it was loaded")


class WarmModel:
    """Loads models as ``load_for_scoring`` does; what it returned last may not be used any more then.

    It holds the module where it computes. On the host it holds, where they are a small part of what is free
    (``host_memory``), copies of the base's weights that a merged adapter wrote over, or a full snapshot where the base
    was asked for after one before. Models whose answers depend on more than weights and request are not held.
    """

    def __init__(self) -> None:
        self._warm: _Warm | None = None
        self._returns = False  # whether the base was asked for after a full snapshot
        self._offered: tuple[Path, Tensors] | None = None

    def offer(self, snapshot: Path, tensors: Tensors | None) -> None:
        """Have at hand, for the next load, tensors of a snapshot's files that were read ahead; None takes them back."""
        self._offered = None if tensors is None else (snapshot, tensors)

    def load(
        self,
        model: Model,
        snapshot: Path | None,
        dtype: str,
        adapters: str = "unmerged",
        device: str = "cpu",
    ) -> Any:
        """Return a model to score; arguments and errors as of ``load_for_scoring``."""
        offered, self._offered = self._offered, None
        tensors = offered[1] if offered is not None and offered[0] == snapshot else None
        key = (model, file_states(model), dtype, device)
        on_base = snapshot is None or (snapshot / ADAPTER).is_file()
        self._let_go_of_another(key, on_base)
        # Adapters are merged on the CPU, as ever: a GPU rounds otherwise.
        if not (adapters == "merged" and snapshot is not None and on_base and device != "cpu"):
            if self._warm is None:
                self._hold(key, None if on_base else snapshot)
            if self._warm is not None:
                try:
                    return _frozen(self._put(self._warm, model, snapshot, adapters, tensors))
                except _FAILURES as error:
                    log.warning("%s is loaded anew, not copied: %s", snapshot or place_of(model), error)
        self.release()
        return snapshots.load_for_scoring(model, snapshot, dtype, adapters, device)

    def release(self) -> None:
        """Let go of what is held."""
        if self._warm is not None:
            self._warm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _let_go_of_another(self, key: tuple[Any, ...], on_base: bool) -> None:
        """Let go of the module where it is another base's, or the base is asked for and was not kept."""
        if self._warm is not None and self._warm.key != key:
            self._returns = False
            self.release()
        if self._warm is not None and on_base and not self._warm.has_base:
            self._returns = True
            self.release()

    def _hold(self, key: tuple[Any, ...], snapshot: Path | None) -> None:
        """Load a base, or a full snapshot of it, to be held; nothing where a module may remember what it computed."""
        model, files, dtype, device = key
        if files is None or model.trust_remote_code or depends_on_length(load_config(model)):
            return
        module = snapshots.load_for_scoring(model, snapshot, dtype, device=device)
        if snapshot is None:
            self._warm = _Warm(key, module, _configuration(model), _answer(module), "base")
        else:
            own = _configuration(snapshots.whole_model(model, snapshot))
            self._warm = _Warm(key, module, own, None, "snapshot")

    def _put(self, warm: _Warm, model: Model, snapshot: Path | None, adapters: str, tensors: Tensors | None) -> Any:
        if snapshot is None:
            return warm.put_base()
        tensors = read_tensors(snapshot) if tensors is None else tensors
        if (snapshot / ADAPTER).is_file():
            return warm.put_adapter(snapshot, tensors, adapters == "merged")
        if _configuration(snapshots.whole_model(model, snapshot)) != warm.configuration:
            raise NotCopied("its configuration is another one than the module's")
        return warm.put_snapshot(tensors, self._returns)


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()


def _configuration(model: Model) -> dict[str, Any]:
    """Return what makes a module of a model's configuration."""
    return {key: value for key, value in load_config(model).to_dict().items() if key not in _FREE}


def _adapter_configuration(snapshot: Path) -> dict[str, Any]:
    """Return an adapter's configuration, with what is a set in it in order."""
    found = json.loads((snapshot / ADAPTER).read_text())
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in found.items()}


@torch.inference_mode()
def _answer(model: Any) -> torch.Tensor:
    """Return a model's logits for a few tokens of all its vocabulary, on the CPU."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.linspace(0, rows - 1, _CANARY_TOKENS).long()[None].to(model.device)
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.cpu()


def _state(module: Any) -> dict[str, torch.Tensor]:
    """Return parameters, a shared one once, and buffers that are part of the weights, by name."""
    own = dict(module.named_parameters())
    named = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return own | {name: tensor for name, tensor in module.state_dict().items() if name not in named}


def _stored(module: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a module by the names that they have in its files.

    Raises NotCopied where files have them in another form.
    """
    state = _state(module)
    own = {id(tensor) for tensor in state.values()}
    stored: dict[str, torch.Tensor] = revert_weight_conversion(module, dict(state))
    if {id(tensor) for tensor in stored.values()} != own:
        raise NotCopied("its files hold weights in another form than the module")
    return stored


def _adapter_weights(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """Return an adapter's weights by the names that they have in its file."""
    return {name.replace(".default", ""): weight for name, weight in adapted.named_parameters() if ".lora_" in name}


@torch.no_grad()
def _copy(places: Tensors, tensors: Tensors) -> None:
    """Copy tensors into those of equal names, in their dtype.

    Raises NotCopied where names or shapes differ, or what is there then.
    """
    if places.keys() != tensors.keys():
        raise NotCopied(f"the tensors are others than the module's, first {min(places.keys() ^ tensors.keys())}")
    for name, place in places.items():
        moved = tensors[name].to(place.device, place.dtype)
        if moved.shape != place.shape:
            raise NotCopied(f"{name} has shape {tuple(moved.shape)}, in the module {tuple(place.shape)}")
        place.copy_(moved)
        if not _same_bits(place, moved):
            raise NotCopied(f"{name} differs after it was copied")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether tensors are equal bit by bit, NaN and the sign of 0 included."""
    return one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.view(torch.int64) if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0 else flat
