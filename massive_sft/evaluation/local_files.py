"""Local files as ``datasets`` knows them: data by its time of modification, which ``cp -p`` keeps; code by names."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from massive_sft.data.hub_data import know_functions_by_their_files


class _TrackedFiles(LocalFileSystem):
    """Says an entity tag for each file, which ``datasets`` asks for before the time of modification."""

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        about: dict[str, Any] = super().info(path, **kwargs)
        # ``created`` is the time of change, in seconds (fsspec 2026): it cannot be set.
        return about | {"ETag": f"{about['ino']} {about['size']} {about['mtime']} {about['created']}"}


def track_changes() -> None:
    """Have ``datasets`` read a local file again that was replaced by one of equal time: its cache asks fsspec.

    And have it run code again that was edited.
    """
    fsspec.register_implementation("file", _TrackedFiles, clobber=True)
    fsspec.register_implementation("local", _TrackedFiles, clobber=True)
    know_functions_by_their_files()
