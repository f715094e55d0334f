"""What computes: kinds of GPU from a table of data sheets, and the CPUs of this machine."""

from __future__ import annotations

import functools
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.cores import usable_cores
from massive_sft.core.memory import total_bytes

CPU = "cpu"
# Of one core, an order of magnitude until something was measured on the machine. With ``duration.TRAINING_SHARE`` it is
# what a model of 135M weights reached on two cores (4.5e10 to 5e10 operations a second); tiny ones reach half or less.
CPU_CORE_FLOPS = 6e10
CPU_BYTES_PER_SECOND = 1e10
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder each, with a file ``information``: no need to import torch


@dataclass(frozen=True)
class Device:
    """One GPU, or all CPUs of a machine.

    Attributes:
        name: of its kind; ``cpu`` for a machine without.
        memory: bytes.
        bf16_flops, fp32_flops: peak operations per second of dense matrix products.
        bandwidth: bytes per second between memory and cores.
        link: bytes per second from one GPU of a node to others, each way.
    """

    name: str
    memory: int
    bf16_flops: float
    fp32_flops: float
    bandwidth: float
    link: float

    @property
    def is_gpu(self) -> bool:
        return self.name != CPU

    def flops(self, precision: str) -> float:
        """Return the peak for ``bf16`` or ``fp32``."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


@functools.cache
def known_gpus() -> dict[str, Device]:
    """Return the kinds of GPU that have a data sheet here, by name."""
    table = json.loads((Path(__file__).parent / "devices.json").read_text())
    devices = {
        name: Device(name, mebibytes << 20, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e9, link * 1e9)
        for name, (mebibytes, bf16, fp32, bandwidth, link) in table["devices"].items()
    }
    return devices | {alias: devices[name] for alias, name in table["aliases"].items()}


@functools.cache
def find_gpu(kind: str) -> Device | None:
    """Return a kind of GPU by what people or its driver call it (``h100``, ``NVIDIA A100-SXM4-40GB``); None if unknown.

    The longest known name whose words all are in ``kind`` counts.
    """
    words = _words(kind)
    fitting = [name for name in known_gpus() if _words(name) <= words]
    return known_gpus()[max(fitting, key=len)] if fitting else None


def _words(text: str) -> frozenset[str]:
    return frozenset(re.split(r"[^A-Z0-9]+", text.upper())) - {""}


@functools.cache
def gpus_here(folder: Path = _NVIDIA_GPUS) -> tuple[str, ...]:
    """Return what NVIDIA's driver calls each GPU of this machine; nothing where there is no such driver."""
    names = []
    for file in sorted(folder.glob("*/information")):
        with suppress(OSError):
            found = re.search(r"^Model:\s*(.+?)\s*$", file.read_text(errors="replace"), re.MULTILINE)
            names += [found[1]] if found else []
    return tuple(names)


@functools.cache
def this_machine() -> Device:
    """Return this machine's CPUs: its memory, or what its container is allowed of it."""
    cores = usable_cores()
    flops = cores * CPU_CORE_FLOPS
    return Device(CPU, total_bytes(), flops, flops, CPU_BYTES_PER_SECOND, CPU_BYTES_PER_SECOND)
