"""The tracker's address, checked before anything is trained."""

from __future__ import annotations

import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from massive_sft.errors import Problem
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.content import expand

TIMEOUT = 5.0  # seconds to answer; a tracker that is slower than that would hold up every cell


def tracking_problem(uri: str, place: str) -> Problem | None:
    """Return why a tracking URI cannot be used, or None. An empty one means the local store."""
    try:
        expanded = expand(uri)
    except KeyError as error:
        return Problem(place, f"needs the environment variable {error.args[0]}, which is not set", uri)
    parts = urllib.parse.urlsplit(expanded)
    if not expanded:
        return None
    if parts.scheme in ("http", "https"):
        return _server_problem(expanded, place)
    if parts.scheme == "sqlite":
        return _sqlite_problem(Path(expanded.removeprefix("sqlite:///")), place)
    return Problem(place, "must be a server's http(s) address or sqlite:///PATH", redact(expanded))


def _server_problem(uri: str, place: str) -> Problem | None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=TIMEOUT):
            return None
    except (urllib.error.URLError, TimeoutError, ValueError, OSError) as error:
        reason = getattr(error, "reason", error)
        return Problem(place, f"is no tracking server that answers ({redact(str(reason))})", redact(uri))


def _sqlite_problem(path: Path, place: str) -> Problem | None:
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Problem(place, "must lie in a folder that can be written", str(path))
    if not path.exists():
        return None
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            database.execute("select 1 from sqlite_master")
    except sqlite3.Error as error:
        return Problem(place, f"is no SQLite database ({error})", str(path))
    return None
