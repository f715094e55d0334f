"""The wish that a run ends: by Ctrl-C, SIGTERM or a closed terminal, or by ``massive-sft cancel`` from elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from massive_sft.core.errors import Interrupted

POLL_S = 1.0  # seconds between looks for a wish that somebody left
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP (its terminal was closed)"}
KILL_MESSAGE = "ended at once; run the same command to go on\n"
SHOW_CURSOR = "\x1b[?25h"


class Stop:
    """Whether a run should end. Whoever works asks it by calling it; true once, it stays true."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._wake = threading.Event()
        self.reason = ""

    def __call__(self) -> bool:
        return self._asked.is_set()

    def ask(self, reason: str) -> None:
        """Wish that the run ends; the first reason counts."""
        self.reason = self.reason or reason
        self._asked.set()
        self._wake.set()

    def check(self) -> None:
        """Raise Interrupted once the run should end."""
        if self():
            raise Interrupted(self.reason)

    @contextmanager
    def handle_signals(self, end_requested: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
        """Heed signals and wishes from elsewhere while the block runs; must be entered on the main thread.

        The first signal asks, a second Ctrl-C ends this process at once. What it then leaves behind is what a crash
        leaves. Where SIGHUP is ignored (``nohup``) it stays so.

        Args:
            end_requested: whether somebody elsewhere left the wish that the run ends; asked about once a second.
            say: told once, why it ends.
        """
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = {number: signal.signal(number, self._on_signal) for number in heeded}
        over = threading.Event()
        looking = threading.Thread(target=self._look, args=(end_requested, say, over), name="stop", daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            self._wake.set()
            looking.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self() and number == signal.SIGINT:
            # Nothing here may wait or need a lock.
            with suppress(OSError):  # nobody reads it any more
                os.write(2, ((SHOW_CURSOR if sys.stderr.isatty() else "") + KILL_MESSAGE).encode())
            for process in _descendants():  # of a local Ray, some would outlive this process by minutes
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            os._exit(Interrupted.exit_code)
        self.ask(SIGNALS[signal.Signals(number)])

    def _look(self, end_requested: Callable[[], bool], say: Callable[[str], None], over: threading.Event) -> None:
        """Look for wishes, and speak: the handler may not, for it may have interrupted somebody who prints."""
        while not over.is_set():
            if end_requested():
                self.ask("massive-sft cancel")
            if self():
                say(f"{self.reason}: ending after the step or shard in hand; Ctrl-C ends at once")
                return
            self._wake.wait(POLL_S)


def _descendants() -> list[int]:
    """Return all processes below this one, parents first; none where the system does not tell (``/proc``)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(stat.read_text().rpartition(")")[2].split()[1])  # the name before it may hold spaces
            children.setdefault(parent, []).append(int(stat.parent.name))
    pids = [os.getpid()]
    for process in pids:  # grows meanwhile
        pids += children.get(process, [])
    return pids[1:]


def never() -> bool:
    """Return False: nobody wishes an end."""
    return False
