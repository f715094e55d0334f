"""Where a model's files are: a folder of this node, the hub's cache, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from massive_sft.models import hub
from massive_sft.sweep import weight_files
from massive_sft.sweep.schema import Model


def place_of(model: Model) -> str:
    """Return where the sweep file says that a model is: its folder or hub id, for messages."""
    return str(model.path or model.hub)


def source(model: Model) -> dict[str, Any]:
    """Return the ``from_pretrained`` arguments of a model: a folder on this node, or a hub id with its revision."""
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        return {
            "pretrained_model_name_or_path": str(folder),
            "local_files_only": True,
            "trust_remote_code": model.trust_remote_code,
        }
    return {
        "pretrained_model_name_or_path": model.hub,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }


def require_weights(model: Model) -> None:
    """Refuse weight files on this node that are missing, broken or an adapter's. Raises InvalidInput."""
    folder = model.path or hub.pinned_folder(model)
    if folder is not None:
        weight_files.find(Path(folder))


def file_states(model: Model) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return what the files of a model's folder are known by: name, inode, size and times of each.

    As long as they are the same nothing was written there. None where the folder is not here, or cannot be read.
    """
    folder = model.path or hub.pinned_folder(model)
    return None if folder is None else folder_states(Path(folder))


def folder_states(folder: Path) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return what the files of a folder are known by, as ``file_states`` does of a model's."""
    try:
        found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError:
        return None
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def weight_paths(model: Model) -> list[Path]:
    """Return the files that a model's weights are loaded from; a hub model's are downloaded when they are not cached.

    Raises:
        InvalidInput: there are none, they are broken, or the hub cannot give them.
    """
    folder = model.path or hub.pinned_folder(model)
    if folder is None:
        pinned = hub.resolve(hub.repository_of(model, place_of(model)))
        folder = hub.download(pinned)
    return weight_files.find(Path(folder))
