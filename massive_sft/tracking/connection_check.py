"""Why a tracker cannot be used, found as the mirror would find it: with MLflow's own client, in seconds."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.paths import expand_variables
from massive_sft.tracking.address import bucket_problem, database_path, resolve_uri, sqlite_address
from massive_sft.tracking.store import database_problem, is_locked, tables_of

T = TypeVar("T")

TIMEOUT_S = 5.0
"""Seconds of silence after which a server does not answer; one that is slower than that would hold up every cell."""
FIRST_EXPERIMENT = "0"
"""Every store has it, though perhaps in its trash; its artifacts lie where those of a new one would."""
ANSWER_TIMEOUT_S = 3 * TIMEOUT_S
"""Seconds for a whole answer, with the lookup of its host and however many pieces it comes in."""

STORE_TIMEOUT_S = 600.0
"""The same for a local store: on a busy machine MLflow is imported slowly; an earlier store it brings up to date."""
UPGRADE = "mlflow db upgrade"


def tracking_problem(uri: str, place: str, root: Path, sweep: str = "") -> Problem | None:
    """Return why a tracking URI cannot be used, or None; a local store that another process has locked can be.

    Args:
        uri: the sweep file's ``tracking.mlflow``; empty means the local store of ``root``, which need not exist yet.
        place: of the URI, for the message.
        root: the storage root.
        sweep: its name, for the place of its artifacts; empty for that of a new experiment.
    """
    try:
        resolved = resolve_uri(uri, root, place)
    except InvalidInput as error:
        return error.problems[0]
    path = database_path(resolved)
    if path is None:
        return _server_problem(resolved, place) or _artifacts_problem(resolved, place, sweep)
    return _folder_problem(path, place, not expand_variables(uri)) or (
        _store_problem(path, place) if path.exists() else None
    )


def _server_problem(uri: str, place: str) -> Problem | None:
    from massive_sft.tracking.client import ask_server

    try:
        status, body = _in_time(lambda: ask_server(uri, TIMEOUT_S))
    except Exception as error:  # noqa: BLE001 - the client, its plugins and what they stand on raise what they like
        return Problem(place, f"is no tracking server that answers ({_reason(error)})", redact(uri))
    if status in (401, 403):
        rule = f"does not let in (HTTP {status}): check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
        return Problem(place, rule + "or MLFLOW_TRACKING_TOKEN", redact(uri))
    if status == 404:
        return Problem(place, "answers, but has no MLflow here (HTTP 404): is it below another path?", redact(uri))
    if status != 200:
        return Problem(place, f"answers, but not to MLflow's client (HTTP {status})", redact(uri))
    if not _lists_experiments(body):
        rule = "answers, but not as a tracking server; is it a login page, or something else's address?"
        return Problem(place, rule, redact(uri))
    return None


def _artifacts_problem(uri: str, place: str, sweep: str) -> Problem | None:
    """Return why a sweep's artifacts cannot be written from here; None also where their place cannot be asked for."""
    from massive_sft.tracking.client import TRACKER_ERRORS, make_client

    def ask() -> str:
        client = make_client(uri)
        experiment = client.get_experiment_by_name(sweep) if sweep else None
        return str((experiment or client.get_experiment(FIRST_EXPERIMENT)).artifact_location)

    try:
        return bucket_problem(_in_time(ask), place)
    except TRACKER_ERRORS:
        return None


def _lists_experiments(body: str) -> bool:
    """Whether a body is what MLflow answers; where there are no experiments, it leaves the list out."""
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("experiments", None if answer else []), list)


def _reason(error: BaseException) -> str:
    """Return what an error of the client comes from, in a few words without secrets."""
    kinds, cause = {type(error).__name__}, error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
        kinds.add(type(cause).__name__)
    text = redact(str(cause) or type(cause).__name__).partition("\n")[0][:300]
    if "ProxyError" in kinds:
        return f"the proxy of this environment does not let it through: {text}; NO_PROXY exempts hosts"
    if "SSLError" in kinds:
        return f"{text}; MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate to trust"
    return text


def _folder_problem(path: Path, place: str, may_be_made: bool) -> Problem | None:
    folder = path.parent
    while may_be_made and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Problem(place, "must lie in a folder that can be written", str(path))
    if path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        return Problem(place, "must be a file that can be read and written", str(path))
    return None


def _store_problem(path: Path, place: str) -> Problem | None:
    try:
        problem = database_problem(path, place)
        if problem or not tables_of(path):
            return problem
    except (BlockingIOError, sqlite3.OperationalError):
        return None  # another process writes into it: it is looked at again when it is opened
    from massive_sft.tracking.client import make_client

    try:
        _in_time(lambda: make_client(sqlite_address(path)).search_experiments(max_results=1), STORE_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - as above; a schema of another version raises three kinds of errors
        if is_locked(error):
            return None
        if UPGRADE in str(error):
            remedy = f"if it is an earlier one, copy the store, then run `{UPGRADE} {sqlite_address(path)}`"
            return Problem(place, f"is the store of another MLflow: {remedy}", str(path))
        return Problem(place, f"cannot be used by this MLflow ({_reason(error)})", str(path))
    return None


def _in_time(ask: Callable[[], T], seconds: float = ANSWER_TIMEOUT_S) -> T:
    """Return what ``ask`` returns, or raise what it raises; TimeoutError when that takes too long."""
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)  # a thread that hangs must not hold up the exit
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return answers[0]
