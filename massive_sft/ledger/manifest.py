"""Manifests: a folder that states the SHA-256 of each of its files, so that it can be verified as a whole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from massive_sft.core import files
from massive_sft.core.errors import Corrupt, LedgerError
from massive_sft.core.fingerprint import hash_file

NAME = "manifest.json"


def seal_folder(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the manifest of a finished folder and flush all of it to the disk.

    Args:
        folder: the folder.
        known: SHA-256 of files in it that ``hash_and_flush`` gave before: they are not read again.

    Returns the SHA-256 by path below the folder, the manifest's own included.

    Raises:
        FileNotFoundError: there is no such folder.
        LedgerError: it is empty, or holds something that is neither a file nor a folder.
        OSError: the disk refuses.
    """
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    known = known or {}
    hashes = {name: known[name] if name in known else hash_and_flush(folder / name) for name in _names(folder)}
    if not hashes:
        raise LedgerError(f"{folder}: is empty, there is nothing to publish")
    files.write_json(folder / NAME, {"schema": 1, "files": hashes})
    for place, _, _ in os.walk(folder):
        files.sync_folder(Path(place))
    return hashes | {NAME: hash_file(folder / NAME)}


def verify_folder(folder: Path) -> dict[str, str]:
    """Read every file of a sealed folder and return its SHA-256 by path, as ``seal_folder`` did.

    Raises ``Corrupt`` when a file is missing, added or changed, or there is no sound manifest.
    """
    try:
        content = files.read_json(folder / NAME)
    except FileNotFoundError as error:
        raise Corrupt(f"{folder}: has no {NAME}") from error
    stated = content.get("files") if isinstance(content, dict) else None
    if not isinstance(stated, dict):
        raise Corrupt(f"{folder / NAME}: is no manifest")
    hashes = {name: hash_file(folder / name) for name in _names(folder)}
    wrong = sorted(name for name in stated.keys() | hashes.keys() if stated.get(name) != hashes.get(name))
    if wrong:
        raise Corrupt(f"{folder}: differs from its manifest in {', '.join(wrong)}")
    return hashes | {NAME: hash_file(folder / NAME)}


def _names(folder: Path) -> list[str]:
    """Return the files below ``folder``, its own manifest left out, sorted."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise LedgerError(f"{path}: must be a plain file or folder to be published")
        if path.is_file() and path != folder / NAME:
            names.append(path.relative_to(folder).as_posix())
    return names


def hash_and_flush(path: Path) -> str:
    """Return the SHA-256 of a file, which is on the disk then."""
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return value
