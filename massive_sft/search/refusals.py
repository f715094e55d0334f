"""What a sweep file may say of a search and this version does not do: refused by a plan, with what there is instead."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.errors import Problem
from massive_sft.sweep.load import Sweep


def refusals(sweep: Sweep) -> Iterator[Problem]:
    """Yield what of a sweep's searches cannot be done."""
    for index in range(len(sweep.file.search)):
        place = f"{sweep.path}: search[{index}]"
        yield Problem(place, "is checked, but this version runs no searches yet: make its cells a block")
