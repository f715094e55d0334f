"""The tensors of a model's weight files, read one at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from massive_sft.core.errors import Corrupt
from massive_sft.sweep import weight_files


class WeightTensors:
    """The tensors of weight files, read one at a time.

    Args:
        files: safetensors, or PyTorch's own, whose tensors stay on the disk as well where they are in its newer format.
    """

    def __init__(self, files: Sequence[Path]):
        self._readers: dict[str, Callable[[], torch.Tensor]] = {}
        for path in files:
            self._readers |= _safetensors(path) if path.suffix == ".safetensors" else _pytorch(path)
        self._folder = files[0].parent

    def names(self) -> list[str]:
        return sorted(self._readers)

    def find(self, name: str) -> str:
        """Return a tensor's name here; a checkpoint of the inner model alone lacks its prefix (``transformer.h.0``).

        Raises:
            Corrupt: when there is none, or more than one that fits.
        """
        found = [name] if name in self._readers else []
        found = found or [known for known in self._readers if f".{name}".endswith(f".{known}")]
        found = found or [known for known in self._readers if f".{known}".endswith(f".{name}")]
        if len(found) != 1:
            raise Corrupt(f"{self._folder}: has {len(found)} tensors for {name}")
        return found[0]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor by name, or as ``find`` finds it."""
        return self._readers[self.find(name)]()


def _safetensors(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    def read(name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return {name: partial(read, name) for name in weight_files.read_header(path)}


def _pytorch(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    return {name: partial(tensors.__getitem__, name) for name in tensors}
