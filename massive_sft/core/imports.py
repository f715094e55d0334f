"""Heavy imports, without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within the block the garbage collector does not run, and afterwards it leaves out all that is there.

    Modules stay, and it would look through those that are there again and again while more come: two of the seven
    seconds that torch, transformers, lm-eval and MLflow take. What is garbage before the block is collected first.
    A block that imports nothing new leaves nothing out: that would keep what a process made meanwhile.
    """
    was_enabled, imported = gc.isenabled(), len(sys.modules)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > imported:
            gc.freeze()
        if was_enabled:
            gc.enable()
