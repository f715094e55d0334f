"""The tracker's pages in a browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.parse

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.tracking.address import PLACE, client_address, database_path
from massive_sft.tracking.store import relocate_artifacts

HOST = "127.0.0.1"
PORT = 5000


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
    options = [f"--backend-store-uri={client_address(uri)}", f"--host={HOST}", f"--port={port}", "--workers=1"]
    return [sys.executable, "-m", "mlflow", "ui", *options]


def ui_address(uri: str, port: int = PORT) -> str:
    """Return where the pages are: the server itself, or the port that ``serve_ui`` serves; no secrets in it."""
    if database_path(uri) is not None:
        return f"http://{HOST}:{port}"
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def serve_ui(uri: str, port: int = PORT) -> int:
    """Serve a local store's pages until interrupted; return the exit status.

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
    process = subprocess.Popen(command, env=quiet_environment())
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal interrupts both; the server ends by itself.
        return process.wait()


def quiet_environment() -> dict[str, str]:
    """Return this environment for an MLflow server that sends nothing home and starts nothing but its pages."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return {**os.environ, **quiet}
