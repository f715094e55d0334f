"""Cells by the beginnings of their ids."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from massive_sft.core.errors import InvalidInput, Problem

MAX_LISTED = 10  # cells named when the beginning fits several


def match_id(ids: Sequence[str], beginning: str) -> str:
    """Return the id that begins so. Raises InvalidInput, with the nearest ids, when there is none or more than one."""
    fitting = [cell for cell in ids if cell.startswith(beginning)]
    if not fitting:
        rule = "is the beginning of no cell's id (`massive-sft status SWEEP` lists them)"
        near = {cell[: len(beginning)]: cell for cell in ids}
        close = ", ".join(near[text] for text in difflib.get_close_matches(beginning, near))
        raise InvalidInput(Problem("cell", rule, beginning, hint=f"did you mean {close}?" if close else ""))
    if len(fitting) > 1 or not beginning:
        rule = f"is the beginning of {len(fitting)} cells' ids"
        raise InvalidInput(Problem("cell", rule, beginning, tuple(fitting[:MAX_LISTED])))
    return fitting[0]
