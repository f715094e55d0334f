"""What estimates lack: which rule says why a part cannot be estimated, and of which things."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

NAMES = 8  # named of each rule, before "and N more"


@dataclass(frozen=True)
class Lack:
    """Why a part of an estimate is not known.

    Attributes:
        rule: a sentence, with ``{}`` where ``what`` stands.
        what: a model, mixture, benchmark or kind of GPU; empty where the rule is of none.
    """

    rule: str
    what: str = ""


NO_GPU_KIND = Lack("no kind of GPU is named: say resources[].gpu (H100, A100-80GB, ...)")
NO_SUCH_GPU = "the kind of GPU {} is not known here"
NO_SIZE = "the size of {} is not known until it is on the disk"
NO_ROWS = "how many rows {} has is not known until they are counted (check does)"
NO_REQUESTS = "the size of {} is not known until requests are built (check does)"


def told(lacks: Mapping[Lack, int]) -> dict[str, int]:
    """Return how many parts are not known by why, a sentence a rule."""
    rules: dict[str, list[Lack]] = defaultdict(list)
    for lack in lacks:
        rules[lack.rule].append(lack)
    return {rule.format(_names(alike)): sum(lacks[lack] for lack in alike) for rule, alike in rules.items()}


def _names(lacks: list[Lack]) -> str:
    more = f" and {len(lacks) - NAMES} more" if len(lacks) > NAMES else ""
    return ", ".join(lack.what for lack in lacks[:NAMES]) + more
