"""The tracker's pages in a browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.tracking.address import PLACE, client_address, database_path
from massive_sft.tracking.store import relocate_artifacts

HOST = "127.0.0.1"
PORT = 5000
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GREETING = "[MLflow] Security middleware enabled"  # how the one line begins that no option of MLflow's keeps away
POLL_S = 0.2  # seconds between looks whether the server is up
END_S = 3.0  # seconds that a server that was asked to end may take


def ui_command(uri: str, port: int = PORT) -> list[str]:
    """Return the command that shows a local store on this machine only.

    Args:
        uri: the resolved address (``address.resolve_uri``).
        port: of the pages.

    Raises:
        InvalidInput: the address is a server's, which shows its own pages.
    """
    if database_path(uri) is None:
        raise InvalidInput(Problem(PLACE, "is a server: open its address in a browser", redact(uri)))
    store = client_address(uri)
    options = [f"--backend-store-uri={store}", f"--registry-store-uri={store}", f"--host={HOST}", f"--port={port}"]
    return [sys.executable, "-m", "mlflow", "ui", *options, "--workers=1", "--uvicorn-opts=--log-level=warning"]


def ui_address(uri: str, port: int = PORT) -> str:
    """Return where the pages are: the server itself, or the port that ``serve_ui`` serves; no secrets in it."""
    if database_path(uri) is not None:
        return f"http://{HOST}:{port}"
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def serve_ui(uri: str, port: int = PORT, ready: Callable[[], None] = lambda: None) -> int:
    """Serve a local store's pages until interrupted; return the exit status. What the server complains of is shown.

    Ctrl-C, SIGTERM and a closed terminal (SIGHUP, unless ``nohup`` ignores it) end the server and its workers with this
    process. For the main thread.

    Args:
        uri: the resolved address (``address.resolve_uri``).
        port: of the pages.
        ready: called once, from another thread, when the server answers: its start takes seconds.

    Raises:
        InvalidInput: nothing was mirrored yet, the port is taken, or the address is a server's.
    """
    command = ui_command(uri, port)
    path = database_path(uri)
    if path is not None and not path.exists():
        raise InvalidInput(Problem(PLACE, "has nothing to show yet: run the sweep, or `massive-sft mirror`", str(path)))
    if path is not None:
        try:
            relocate_artifacts(path)
        except OSError as error:
            raise InvalidInput(Problem(PLACE, f"cannot be shown ({error})", str(path))) from error
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InvalidInput(Problem("--port", f"must be free ({error})", port)) from error
    # A group of its own, so that its workers end with it and nobody else does.
    with _signals_raised() as signals:
        process = subprocess.Popen(
            command, env=quiet_environment(), start_new_session=True, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            signals.let_through()
            threading.Thread(target=_tell_when_up, args=(process, port, ready), daemon=True).start()
            _show_complaints(process)
            return process.wait()
        except _Ended as ended:
            return 0 if ended.number == signal.SIGINT else 128 + ended.number
        finally:
            _end_group(process)


def _tell_when_up(process: subprocess.Popen[str], port: int, ready: Callable[[], None]) -> None:
    while process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=POLL_S):
            ready()
            return
        time.sleep(POLL_S)


def _show_complaints(process: subprocess.Popen[str]) -> None:
    """Print what a server says, but its greeting, until it has ended."""
    for line in process.stdout or ():
        if not line.startswith(GREETING):
            sys.stderr.write(line)
            sys.stderr.flush()


class _Ended(BaseException):
    """A signal says that this process should end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class _Signals:
    """Raises signals as ``_Ended`` once they are let through; one that came before is raised then.

    So none hits between the fork of a server and the place that ends it.
    """

    def __init__(self) -> None:
        self._held: int | None = None
        self._open = False

    def let_through(self) -> None:
        """Raise what came, and from now on what comes."""
        self._open = True
        if self._held is not None:
            raise _Ended(self._held)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._held = number
        if self._open:
            raise _Ended(number)


@contextmanager
def _signals_raised() -> Iterator[_Signals]:
    """Within it signals that end this process are raised as ``_Ended``, once they are let through."""
    signals = _Signals()
    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals.take) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a process and its group: asked first, then killed; signals wait meanwhile."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_S)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def quiet_environment() -> dict[str, str]:
    """Return this environment for an MLflow server that sends nothing home and starts nothing but its pages."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Of a library that MLflow imports, and nothing that its user could change.
    ignored = ["ignore:starlette.middleware.wsgi is deprecated", *filter(None, [os.environ.get("PYTHONWARNINGS")])]
    return {**os.environ, **quiet, "PYTHONWARNINGS": ",".join(ignored)}
