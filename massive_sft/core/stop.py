"""The stop signal of a run: set by Ctrl-C, SIGTERM or a closed terminal, or by ``massive-sft cancel`` elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from massive_sft.core.errors import ExitCode, Interrupted

REDELIVERY_S = 0.05  # seconds after which an interrupt that was lost is sent again: the finalizer has ended
POLL_S = 1.0  # seconds between checks for a request from elsewhere
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP (its terminal was closed)"}
INTERRUPTED = "interrupted; run the same command to go on"
KILL_MESSAGE = "ended at once; run the same command to go on\n"
BELOW_BAR = "\x1b[?25h\n"  # shows the cursor, which a progress bar hides, below its last row
_last_words = [2]  # the innermost last


class StopSignal:
    """A flag that a run should end; calling it returns the flag. Once set, it stays set."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._wake = threading.Event()
        self.reason = ""
        self._nothing_in_hand = False

    def __call__(self) -> bool:
        return self._asked.is_set()

    def request(self, reason: str) -> None:
        """Set the flag; the first reason is kept."""
        self.reason = self.reason or reason
        self._asked.set()
        self._wake.set()

    @property
    def exit_code(self) -> ExitCode:
        """What a stopped run ends with: SIGTERM is a scheduler's, which may retry; the rest is a person's wish."""
        return ExitCode.TRY_AGAIN if self.reason == SIGNALS[signal.SIGTERM] else ExitCode.INTERRUPTED

    def check(self) -> None:
        """Raise Interrupted once the run should end."""
        if self():
            raise Interrupted(self.reason)

    @contextmanager
    def nothing_in_hand(self) -> Iterator[None]:
        """Within it the first Ctrl-C ends this process at once as a second one does, for there is nothing to wait for
        but a start that cannot be broken off, and that takes as long as the machine is busy.
        """
        self._nothing_in_hand = True
        try:
            yield
        finally:
            self._nothing_in_hand = False

    @contextmanager
    def handle_signals(self, end_requested: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
        """Set the flag on signals and on requests from elsewhere while the block runs.

        Must be entered on the main thread. The first signal sets the flag, a second Ctrl-C ends this process at once,
        which leaves what a crash leaves. Where SIGHUP is ignored (``nohup``) it stays so.

        Args:
            end_requested: returns whether another process requested the end; called about once a second.
            say: called once, with the reason.
        """
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handled = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        over = threading.Event()
        poller = threading.Thread(target=self._poll, args=(end_requested, say, over), name="stop", daemon=True)
        poller.start()
        try:
            yield
        finally:
            over.set()
            self._wake.set()
            poller.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self() or self._nothing_in_hand):
            # Nothing here may need a lock.
            with suppress(OSError):  # stderr is closed
                last = _last_words[-1]
                os.write(last, ((BELOW_BAR if os.isatty(last) else "") + KILL_MESSAGE).encode())
            for process in _descendants():  # of a local Ray, some would outlive this process by minutes
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            os._exit(ExitCode.INTERRUPTED)
        self.request(SIGNALS[signal.Signals(number)])

    def _poll(self, end_requested: Callable[[], bool], say: Callable[[str], None], over: threading.Event) -> None:
        """Poll for requests, and report: a signal handler must not print, for it may have interrupted a print."""
        while not over.is_set():
            with suppress(OSError):  # a store that cannot be asked now is asked again; who needs it will say so
                if end_requested():
                    self.request("massive-sft cancel")
            if self():
                say(f"{self.reason}: ending after the step or shard in hand; another Ctrl-C ends at once")
                return
            self._wake.wait(POLL_S)


@contextmanager
def last_words_to(descriptor: int) -> Iterator[None]:
    """Within it the sentence of a second Ctrl-C goes to this descriptor instead of 2: where 2 leads through a thread of
    this process, which ends with it.
    """
    _last_words.append(descriptor)
    try:
        yield
    finally:
        _last_words.pop()


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


def redeliver_lost_interrupts() -> None:
    """Have a Ctrl-C that met a finalizer sent again: Python prints and ignores what is raised in one.

    Imports of torch and lm-eval run thousands of them, so that a Ctrl-C at a start may have no effect at all.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(REDELIVERY_S, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook


def never_stop() -> bool:
    """Return False: the default where nothing can stop a run."""
    return False
