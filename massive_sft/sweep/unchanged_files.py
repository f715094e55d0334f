"""What a run works on, compared with what it was planned on: local files may be replaced while it goes on.

An id is of content that was hashed when the run was planned; a result under it counts only when that content was read.
Files whose inode, size and times are as they were are not hashed again, so asking is a matter of milliseconds.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import FileHashes, canonical_json
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.content import Contents
from massive_sft.sweep.schema import Model

RULE = "changed since the run was planned, so nothing is done with it; put it back, or run the same command again"

_hashes = cache(FileHashes)  # one a process


def _contents() -> Contents:
    return Contents(Path("/"), hashes=_hashes())


def require_same_model(model: Model, base: str) -> None:
    """Refuse to go on when a base model's weights, tokenizer or code are no longer those that were planned.

    A model of the hub is known by its commit, and its files are not looked at.

    Args:
        model: resolved, as a recipe has it.
        base: its content when it was planned, canonical JSON (``Recipe.parts["base"]``).

    Raises:
        InvalidInput: naming the files' folder.
    """
    then, now = json.loads(base), _contents().model(model, "base")
    _hashes().save()
    places = {"weights": model.path, "tokenizer": model.tokenizer or model.path}
    changed = dict.fromkeys(str(place) for key, place in places.items() if now.get(key) != then.get(key))
    if changed:
        raise InvalidInput(Problem(place, RULE) for place in changed)


def require_same_data(recipe: Recipe) -> None:
    """Refuse to go on when a recipe's local data files are no longer those that were planned.

    Raises:
        InvalidInput: naming them.
    """
    contents = _contents()
    planned = json.loads(recipe.parts["data"])["parts"]
    changed = [
        str(part.dataset.path)
        for part, then in zip(recipe.mixture.parts, planned, strict=True)
        if canonical_json(contents.dataset(part.dataset, part.name) | {"count": part.count}) != canonical_json(then)
    ]
    _hashes().save()
    if changed:
        raise InvalidInput(Problem(place, RULE) for place in dict.fromkeys(changed))
