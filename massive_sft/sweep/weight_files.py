"""The files that transformers loads a model's weights from, as it chooses them, and what is wrong with them.

A folder may hold other weights beside them (``consolidated.safetensors``, an older ``pytorch_model.bin``), which nobody
reads. Source of the order: ``_get_resolved_checkpoint_files`` of transformers 5.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem

SINGLE = ("model.safetensors", "pytorch_model.bin")
ADAPTER = "adapter_config.json"
IS_ADAPTER = (
    f"is an adapter ({ADAPTER}): transformers would load it over another base; "
    "merge it into its base, and name the folder of the merged model"
)
NO_WEIGHTS = f"has no weights: neither {' nor '.join(SINGLE)}, nor an index of either"
DOWNLOAD_AGAIN = "download it again"
_LONGEST_HEADER = 100_000_000  # bytes; what the safetensors library takes


def find(folder: Path) -> list[Path]:
    """Return the files that a folder's weights are loaded from, by name.

    Reads a few bytes of each, and the headers of safetensors.

    Raises:
        InvalidInput: there are none, some are missing or are no weights, or the folder is an adapter's.
    """
    if (folder / ADAPTER).is_file():
        raise InvalidInput(Problem(str(folder), IS_ADAPTER))
    files = [folder / name for name in sorted(_named(folder)[1])]
    problems = [problem for file in files if (problem := _problem(file)) is not None]
    if problems:
        raise InvalidInput(problems)
    return files


def are_there(folder: Path) -> bool:
    """Return whether a folder has the files that its weights are loaded from, broken ones too, or is an adapter's."""
    try:
        return (folder / ADAPTER).is_file() or all((folder / name).exists() for name in _named(folder)[1])
    except InvalidInput:
        return False


def find_with_index(folder: Path) -> list[Path]:
    """Return the files that ``find`` does, and the index that names them where there is one. Raises as ``find``."""
    index, _ = _named(folder)
    return find(folder) + ([index] if index else [])


def select(names: Iterable[str]) -> set[str]:
    """Return those of a repository's file names that weights are loaded from; of shards all that an index may name."""
    known = {name for name in names if "/" not in name}
    for single in SINGLE:
        index = f"{single}.index.json"
        if single in known:
            return {single}
        if index in known:
            kind = Path(single).suffix
            not_weights = ("consolidated", "adapter_model", "optimizer", "training_args")
            return {index} | {name for name in known if name.endswith(kind) and not name.startswith(not_weights)}
    return set()


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: ``{"dtype", "shape", "data_offsets"}`` by tensor name.

    Raises:
        ValueError: it is no safetensors file, or not all of one.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        start = source.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError("is no safetensors file, or cut short")
        tensors = json.loads(source.read(length))
    try:
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (AttributeError, KeyError, TypeError, IndexError):
        raise ValueError("is no safetensors file") from None
    if size != 8 + length + end:
        raise ValueError(f"has {size} bytes where its header says {8 + length + end}")
    return dict(tensors)


def _named(folder: Path) -> tuple[Path | None, set[str]]:
    """Return the index, and the names of the files that weights are loaded from, whether they are there or not."""
    explicit = _json(folder / "config.json").get("transformers_weights")
    for single in (explicit,) if isinstance(explicit, str) else SINGLE:
        index = folder / (single if single.endswith(".index.json") else f"{single}.index.json")
        if single != index.name and ((folder / single).is_file() or (folder / single).is_symlink()):
            return None, {single}
        if index.is_file():
            named = _json(index).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()) or not named:
                raise InvalidInput(Problem(str(index), f"is no index of weight files; {DOWNLOAD_AGAIN}"))
            return index, set(named.values())
    raise InvalidInput(Problem(str(folder), NO_WEIGHTS))


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _problem(file: Path) -> Problem | None:
    """Return what is wrong with a weight file, with the remedy; None when it looks like one."""
    place = str(file)
    try:
        with file.open("rb") as source:
            start = source.read(64)
    except FileNotFoundError:
        if file.is_symlink():
            return Problem(place, f"is a link to a file that is not there; {DOWNLOAD_AGAIN}")
        return Problem(place, f"is missing, though the index beside it names it; {DOWNLOAD_AGAIN}")
    except OSError as error:
        return Problem(place, f"cannot be read ({error.strerror})")
    if start.startswith(b"version https://git-lfs"):
        return Problem(place, "is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return Problem(place, f"is a web page, not weights; {DOWNLOAD_AGAIN}")
    if file.suffix != ".safetensors":
        # A pickle begins with its protocol; torch's newer format is a zip archive, whose directory is at its end.
        sound = zipfile.is_zipfile(file) if start.startswith(b"PK") else start.startswith(b"\x80")
        return None if sound else Problem(place, f"is no file of PyTorch weights, or cut short; {DOWNLOAD_AGAIN}")
    try:
        read_header(file)
    except OSError as error:
        return Problem(place, f"cannot be read ({error.strerror})")
    except ValueError as error:
        rule = str(error) if "bytes where" in str(error) else "is no safetensors file, or cut short"
        return Problem(place, f"{rule}; {DOWNLOAD_AGAIN}")
    return None
