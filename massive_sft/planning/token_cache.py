"""What the token cache under a root's local folder says of training sets; only what it lists is looked up."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from massive_sft.core.checksummed_json import read_sealed
from massive_sft.core.errors import Corrupt
from massive_sft.ledger.storage import Folder


class TokenCache:
    """The descriptions of the training sets that are cached under a root, as they were when this was made."""

    def __init__(self, root: Path):
        self._cache = Folder(root / "cache" / "tokens")
        self._listed: frozenset[str] = frozenset()
        with suppress(OSError):  # nothing that can be read is cached
            self._listed = frozenset(item.name for item in self._cache.list())

    def read(self, key: str) -> Any:
        """Return the description under a key (``plan.token_key``); None where none is cached, or none is sound."""
        name = f"{key}.json"
        if name not in self._listed:
            return None
        try:
            return read_sealed(self._cache.local(name))
        except (OSError, Corrupt):
            return None  # it is built again
