"""What Ray's native code writes to standard error: kept out of what a run prints."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from massive_sft.core.stop import last_words_to

# "[2026-11-27 13:43:55,962 E 24032 24352] core_worker.cc:2465: ...": debug, info, warning, error; C is what ends it.
RAY_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,.]+ [DIWE] \d+ \d+\]")
FORWARD_S = 2.0  # seconds that the last lines may take on their way


@contextmanager
def without_native_log() -> Iterator[None]:
    """Within it Ray's native code does not write into the terminal what its session's logs hold as well.

    Warnings and errors of this process's core worker come past ``sys.stderr``, through file descriptor 2, and break a
    progress bar. Everything else that is written there is passed on, line by line; so is what ends the process.
    """
    original = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    thread = threading.Thread(target=_forward, args=(source, original), name="native-log", daemon=True)
    thread.start()
    try:
        with last_words_to(original):
            yield
    finally:
        os.dup2(original, 2)
        thread.join(FORWARD_S)  # longer where a child of this process has inherited the pipe


def _forward(source: int, target: int) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if not RAY_LINE.match(line):
                with suppress(OSError):  # a terminal that is gone
                    os.write(target, line)
    os.close(target)
