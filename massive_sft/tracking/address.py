"""The tracker's address: what it resolves to, and why it cannot be used, checked before anything is trained."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from massive_sft.errors import InvalidInput, Problem
from massive_sft.fingerprint import digest
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.content import expand

TIMEOUT = 5.0  # seconds to answer; a tracker that is slower than that would hold up every cell
PLACE = "tracking.mlflow"
SQLITE = "sqlite:///"
# SQLite relies on file locks, which these file systems lack, forget or emulate: two writers corrupt the database.
_SHARED = re.compile(
    r"nfs4?|cifs|smb3|smbfs|lustre|gpfs|ceph|beegfs\w*|afs|9p|glusterfs|orangefs|pvfs2|wekafs|panfs|ncpfs|fuse(\..+)?"
)


def resolve(tracking_uri: str, root: Path) -> str:
    """Return the address to mirror to.

    Args:
        tracking_uri: the sweep file's ``tracking.mlflow``; ``${NAME}`` is expanded, empty means the local store.
        root: the storage root. The local store is ``mlflow.db`` in it, or in the user's state folder when the root
            lies on a network file system.

    Raises:
        InvalidInput: an environment variable is not set, or it is neither a server nor an absolute SQLite path.
    """
    problem = _form_problem(tracking_uri, PLACE)
    if problem:
        raise InvalidInput(problem)
    uri = expand(tracking_uri)
    return uri or f"{SQLITE}{local_folder(root) / 'mlflow.db'}"


def local_folder(root: Path, mounts: Path = Path("/proc/mounts")) -> Path:
    """Return the folder of a ledger's local store; where nobody tells file systems, the root counts as local."""
    root = root.resolve()
    if not _SHARED.fullmatch(filesystem(root, mounts)):
        return root
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "massive-sft" / digest(str(root))


def filesystem(path: Path, mounts: Path) -> str:
    """Return the type of the file system that an absolute path lies on; empty when ``mounts`` cannot be read."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    found = (Path("/"), "")
    for _, point, kind, *_ in map(str.split, lines):
        # Spaces in a mount point are written as octal escapes. Of mounts on one point the last hides the others.
        folder = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point))
        if path.is_relative_to(folder) and len(folder.parts) >= len(found[0].parts):
            found = (folder, kind)
    return found[1]


def database(uri: str) -> Path | None:
    """Return the file of a resolved SQLite address; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Return the folder of a local store's artifacts; None for a server, which decides itself."""
    path = database(uri)
    return None if path is None else str(path.parent / "mlflow-artifacts")


def tracking_problem(uri: str, place: str) -> Problem | None:
    """Return why a tracking URI cannot be used, or None. An empty one means the local store."""
    problem = _form_problem(uri, place)
    expanded = "" if problem else expand(uri)
    if problem or not expanded:
        return problem
    path = database(expanded)
    return _server_problem(expanded, place) if path is None else _sqlite_problem(path, place)


def _form_problem(uri: str, place: str) -> Problem | None:
    try:
        expanded = expand(uri)
    except KeyError as error:
        return Problem(place, f"needs the environment variable {error.args[0]}, which is not set", uri)
    if not expanded or urllib.parse.urlsplit(expanded).scheme in ("http", "https"):
        return None
    path = database(expanded)
    if path is None:
        return Problem(place, "must be a server's http(s) address or sqlite:///PATH", redact(expanded))
    if not path.is_absolute():
        return Problem(place, "must name an absolute path, with four slashes: sqlite:////home/me/mlflow.db", expanded)
    return None


def _server_problem(uri: str, place: str) -> Problem | None:
    try:
        with urllib.request.urlopen(_health(uri), timeout=TIMEOUT):
            return None
    except (urllib.error.URLError, TimeoutError, ValueError, OSError) as error:
        reason = getattr(error, "reason", error)
        return Problem(place, f"is no tracking server that answers ({redact(str(reason))})", redact(uri))


def _health(uri: str) -> urllib.request.Request:
    """Return the request for a server's health; urllib wants the URI's ``user:password`` as a header."""
    parts = urllib.parse.urlsplit(uri)
    userinfo, _, host = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit(parts._replace(netloc=host, path=parts.path.rstrip("/") + "/health"))
    request = urllib.request.Request(address)
    if userinfo:
        credentials = base64.b64encode(urllib.parse.unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    return request


def _sqlite_problem(path: Path, place: str) -> Problem | None:
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Problem(place, "must lie in a folder that can be written", str(path))
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    except sqlite3.Error as error:
        return Problem(place, f"is no SQLite database ({error})", str(path))
    # MLflow would add its own tables to anybody's database.
    if tables and "alembic_version" not in tables:
        return Problem(place, "is the database of something else than MLflow", str(path))
    return None
