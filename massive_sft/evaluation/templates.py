"""lm-eval's templates, each compiled once: it compiles a task's anew for every question and every shot of it.

That takes a millisecond, filling a template in a hundredth of one; MMLU with five shots fills in some 150,000.
"""

from __future__ import annotations

import functools
from typing import Any

import lm_eval.utils

KEPT = 512  # templates; a task has a handful


@functools.cache
def compile_once() -> None:
    """Have lm-eval keep what it compiles, in this process, from now on."""
    compiled = lm_eval.utils.env.from_string

    @functools.lru_cache(KEPT)
    def from_string(source: str) -> Any:
        return compiled(source)

    lm_eval.utils.env.from_string = from_string  # type: ignore[method-assign]
