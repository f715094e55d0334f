"""Heavy imports, without the garbage collector, and with every Ctrl-C."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within the block the garbage collector does not run, and afterwards it leaves out all that is there.

    Modules stay, and it would look through those that are there again and again while more come: two of the seven
    seconds that torch, transformers, lm-eval and MLflow take. What is garbage before the block is collected first.
    A block that imports nothing new leaves nothing out: that would keep what a process made meanwhile.

    Raises:
        KeyboardInterrupt: at the latest at the end of a block in which Ctrl-C was pressed.
    """
    was_enabled, imported = gc.isenabled(), len(sys.modules)
    gc.collect()
    gc.disable()
    try:
        with _interrupts_kept():
            yield
    finally:
        if len(sys.modules) > imported:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of a block that swallowed one, or made another error of it, as imports may do.

    Only where Python's own handler is there and can be replaced: on the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    caught = list[int]()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except Exception as error:
        if caught:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt
