"""The checks of ``doctor``, each with a level and a sentence. Nothing is changed on the machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from massive_sft.core.cores import usable_cores
from massive_sft.core.memory import free_bytes, total_bytes
from massive_sft.ledger.provenance import LIBRARIES

GB = 10**9
_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


class Level(StrEnum):
    """``OK``; ``WARN``: it works, slower or not all of it; ``BAD``: a run cannot work."""

    OK = "green"
    WARN = "yellow"
    BAD = "red"


@dataclass(frozen=True)
class CheckResult:
    """One thing looked at, for people."""

    level: Level
    what: str
    text: str


def check_python() -> CheckResult:
    """Check the interpreter; the package needs 3.11."""
    version = platform.python_version()
    return CheckResult(Level.OK, "Python", f"{version}, {platform.platform()}")


def pinned_versions(constraints: Path = _CONSTRAINTS) -> dict[str, str]:
    """Return the versions that the package is tested with, by normalised name; none where it came without them."""
    try:
        lines = constraints.read_text().splitlines()
    except FileNotFoundError:
        return {}
    pinned = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_normal(name): version.split(";")[0].strip() for name, _, version in pinned}


def check_packages(tested: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check the libraries that results depend on, against the tested versions."""
    same = []
    for name in LIBRARIES:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(Level.BAD, name, "is not installed")
            continue
        wanted = tested.get(_normal(name))
        if wanted is None or installed.partition("+")[0] == wanted.partition("+")[0]:
            same.append(f"{name} {installed}")
        else:
            yield CheckResult(Level.WARN, name, f"{installed} is not the tested {wanted} (constraints.txt)")
    if same:
        known = "" if tested else ", not compared: constraints.txt is not beside the package"
        yield CheckResult(Level.OK if tested else Level.WARN, "packages", ", ".join(same) + known)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-").strip()


def check_cpu() -> CheckResult:
    """Check the cores that this process may use."""
    cores = usable_cores()
    return CheckResult(Level.OK if cores > 1 else Level.WARN, "CPU", f"{cores} cores")


def check_memory() -> CheckResult:
    """Check the memory that is free, and the limit of the container if there is one."""
    free, total = free_bytes(), total_bytes()
    level = Level.OK if free >= 4 * GB else Level.WARN
    return CheckResult(level, "RAM", f"{free / GB:.1f} GB free of {total / GB:.1f} GB")


def check_disk(root: Path, what: str) -> CheckResult:
    """Check the space where ``root`` is or will be, and whether it can be written."""
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return CheckResult(Level.BAD, what, f"{root}: {there} cannot be written")
    level = Level.BAD if free < GB else Level.WARN if free < 20 * GB else Level.OK
    return CheckResult(level, what, f"{root}: {free / GB:,.0f} GB free")


def check_gpus() -> CheckResult:
    """Check the GPUs that torch can use."""
    try:
        import torch
    except ImportError as error:
        return CheckResult(Level.BAD, "GPU", f"torch cannot be imported ({error})")
    if not torch.cuda.is_available():
        return CheckResult(Level.WARN, "GPU", f"none that torch {torch.__version__} can use: training is on the CPU")
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{gpu.name} {gpu.total_memory / GB:.0f} GB" for gpu in names)
    return CheckResult(Level.OK, "GPU", f"{len(names)}: {listed}")


def check_import(module: str) -> CheckResult:
    """Check that a library can be imported: an installed one may lack a system library."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return CheckResult(Level.BAD, module, f"cannot be imported ({error})")
    return CheckResult(Level.OK, module, "can be imported")


def check_compiler() -> CheckResult:
    """Check the C compiler, with which torch and DeepSpeed build kernels."""
    named = os.environ.get("CC", "").split()
    path = next(filter(None, map(shutil.which, [*named[:1], "cc", "gcc", "clang"])), None)
    if path is None:
        return CheckResult(Level.BAD, "C compiler", "none found (CC, cc, gcc, clang): install gcc")
    return CheckResult(Level.OK, "C compiler", path)


def check_open_files() -> CheckResult:
    """Check the limit of open files, of which every Ray worker takes dozens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = Level.BAD if soft < 256 else Level.WARN if soft < 4096 else Level.OK
    remedy = "" if level is Level.OK else f": raise it with `ulimit -n {min(hard, 65536) if hard > 0 else 65536}`"
    return CheckResult(level, "open files", f"ulimit -n is {soft:,}{remedy}")


def check_shared_memory() -> CheckResult:
    """Check the shared memory, where Ray's object store and NCCL keep what workers exchange."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        return CheckResult(Level.WARN, "/dev/shm", f"cannot be used ({error.strerror}): Ray falls back to the disk")
    free = status.f_bavail * status.f_frsize
    if free < GB:
        text = f"{free / GB:.2f} GB free: little (docker: --shm-size=8g); Ray falls back to the disk"
        return CheckResult(Level.WARN, "/dev/shm", text)
    return CheckResult(Level.OK, "/dev/shm", f"{free / GB:.1f} GB free")


def check_hub_cache(uses_hub: bool) -> Iterator[CheckResult]:
    """Check where models from the hub are kept, and what the variables say about the network.

    Args:
        uses_hub: whether the sweep names anything of the hub.
    """
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    yield check_disk(Path(os.environ.get("HF_HUB_CACHE") or home / "hub"), "HF cache")
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_set(name)]
    if offline and uses_hub:
        yield CheckResult(Level.WARN, "offline", f"{', '.join(offline)} set: what is not in the cache cannot be had")
    else:
        yield CheckResult(Level.OK, "offline", f"{', '.join(offline)} set" if offline else "no: the hub is asked")
    yield CheckResult(
        Level.OK, "HF_TOKEN", "is set" if os.environ.get("HF_TOKEN") else "is not set: gated models need one"
    )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
