"""The tracker's address: what it resolves to, and what it means. Light: no mlflow here."""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.parse
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import digest
from massive_sft.ledger.provenance import HIDDEN, redact
from massive_sft.sweep.paths import expand_variables

PLACE = "tracking.mlflow"
SQLITE = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"
BUCKETS = ("s3", "r2", "b2")
"""Forms of a place for artifacts that MLflow's client writes to by itself, with boto3."""
# SQLite relies on file locks, which these file systems lack, forget or emulate: two writers corrupt the database.
_SHARED = re.compile(
    r"nfs4?|cifs|smb3|smbfs|lustre|gpfs|ceph|beegfs\w*|afs|9p|glusterfs|orangefs|pvfs2|wekafs|panfs|ncpfs|fuse(\..+)?"
)


def resolve_uri(tracking_uri: str, root: Path, place: str = PLACE) -> str:
    """Return the address to mirror to.

    Args:
        tracking_uri: the sweep file's ``tracking.mlflow``; ``${NAME}`` is expanded, empty means the local store.
        root: the storage root. The local store is ``mlflow.db`` in it, or in the user's state folder when the root
            lies on a network file system.
        place: of the address, for the message.

    Raises:
        InvalidInput: an environment variable is not set, or it is neither a server nor an absolute SQLite path.
    """
    problem = _form_problem(tracking_uri, place)
    if problem:
        raise InvalidInput(problem)
    return expand_variables(tracking_uri) or sqlite_address(local_folder(root) / "mlflow.db")


def local_folder(root: Path, mounts: Path = Path("/proc/mounts")) -> Path:
    """Return the folder of a ledger's local store; where file systems cannot be told, the root counts as local."""
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
    deepest = (Path("/"), "")
    for _, point, kind, *_ in map(str.split, lines):
        # Spaces in a mount point are written as octal escapes. Of mounts on one point the last hides the others.
        folder = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point))
        if path.is_relative_to(folder) and len(folder.parts) >= len(deepest[0].parts):
            deepest = (folder, kind)
    return deepest[1]


def sqlite_address(path: Path) -> str:
    """Return the address of an absolute path; what means something else in a URI is quoted."""
    return SQLITE + urllib.parse.quote(str(path))


def database_path(uri: str) -> Path | None:
    """Return the file of a resolved SQLite address; None for a server."""
    return Path(urllib.parse.unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def client_address(uri: str) -> str:
    """Return a resolved address as MLflow's client takes it.

    It names the SQLite driver, for of a plain ``sqlite:///`` address MLflow makes the folder, with its name as quoted.
    """
    path = database_path(uri)
    return uri if path is None else sqlite_address(path).replace("sqlite:", "sqlite+pysqlite:", 1)


def artifact_location(uri: str) -> str | None:
    """Return the address of the folder of a local store's artifacts; None for a server, which decides itself."""
    path = database_path(uri)
    return None if path is None else (path.parent / ARTIFACTS).as_uri()


def bucket_problem(location: str, place: str) -> Problem | None:
    """Return why artifacts cannot be written to an experiment's ``artifact_location`` from here, or None."""
    if urllib.parse.urlsplit(location).scheme not in BUCKETS or importlib.util.find_spec("boto3"):
        return None
    return Problem(place, "keeps artifacts in a bucket, which needs boto3: `pip install 'massive-sft[s3]'`", location)


def _form_problem(uri: str, place: str) -> Problem | None:
    try:
        expanded = expand_variables(uri)
    except KeyError as error:
        return Problem(place, f"needs the environment variable {error.args[0]}, which is not set", uri)
    if not expanded:
        return None
    if re.match("https?:", expanded, re.IGNORECASE):
        return _server_form_problem(expanded, place)
    path = database_path(expanded)
    if path is None:
        return Problem(place, "must be a server's http(s) address or sqlite:///PATH", _without_login(expanded))
    if "?" in expanded or "#" in expanded:
        return Problem(place, "must be a path alone, with %3F for ?, %23 for # and %25 for %", redact(expanded))
    if not path.is_absolute():
        return Problem(place, "must name an absolute path, with four slashes: sqlite:////home/me/mlflow.db", expanded)
    return None


def _server_form_problem(uri: str, place: str) -> Problem | None:
    try:
        parts = urllib.parse.urlsplit(uri)
        has_host, _ = bool(parts.hostname), parts.port
    except ValueError:  # of brackets, or of what stands where a port should
        has_host = False
    if has_host and not re.search(r"\s", uri):
        return None
    rule = "must be http(s)://HOST[:PORT]; in a user's name or password / is %2F, @ is %40 and a space is %20"
    return Problem(place, rule, _without_login(uri))


def _without_login(uri: str) -> str:
    """Return an address for people: without name and password, however these are written in it."""
    return redact(re.sub(r"^([\w+.-]+:/*)?.*@", rf"\1{HIDDEN}@", uri, flags=re.DOTALL))
