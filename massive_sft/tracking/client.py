"""MLflow's client: how this package sets it up and asks with it. Whoever needs mlflow imports this module first."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Mapping
from typing import Any

# Read by mlflow at its import: nothing is sent home and nothing printed. Retries are the mirror's own, because a
# create_run that is repeated blindly after a lost answer makes a second run.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}.items():
    os.environ.setdefault(_name, _value)

from alembic.util.exc import CommandError  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.rest_utils import http_request  # noqa: E402
from sqlalchemy import Engine, event  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

from massive_sft.tracking.address import client_address  # noqa: E402
from massive_sft.tracking.store import causes  # noqa: E402

TRACKER_ERRORS = (MlflowException, OSError, SQLAlchemyError, CommandError)
"""What the client raises: connection errors are OSErrors, the last two come from a local store's schema."""

_STATUS = re.compile(r"failed with error code (\d{3}) ")


def make_client(uri: str) -> MlflowClient:
    """Return a client of the tracker at a resolved address; its calls raise ``TRACKER_ERRORS``."""
    silence_loggers()
    return MlflowClient(tracking_uri=client_address(uri))


def make_tables(uri: str, artifacts: str) -> None:
    """Make a local store's tables in a database that is not there yet; ``artifacts`` is the address of a folder.

    What it writes reaches the disk when the system likes: MLflow makes hundreds of changes one by one, and a disk may
    take ten milliseconds for each.
    """

    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("pragma synchronous = off")
        connection.execute("pragma journal_mode = memory")

    silence_loggers()
    event.listen(Engine, "connect", connected)
    try:
        SqlAlchemyStore(client_address(uri), artifacts).engine.dispose()
    finally:
        event.remove(Engine, "connect", connected)


def silence_loggers() -> None:
    """Silence mlflow's and alembic's own messages, which repeat what the mirror says; MLFLOW_LOGGING_LEVEL wins."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def ask_server(uri: str, timeout_s: float) -> tuple[int, str]:
    """Ask a server for an experiment, once, and return the HTTP status and the body of its answer.

    This is the request of the client's ``search_experiments``, with its credentials, its TLS settings and its proxies,
    but without what it makes of the answer: of a refusal in JSON it drops the status.

    Raises:
        MlflowException: no answer within ``timeout_s`` of silence, or the settings contradict each other.
    """
    silence_loggers()
    answer = http_request(
        get_default_host_creds(uri),
        "/api/2.0/mlflow/experiments/search",
        "POST",
        max_retries=0,
        timeout=timeout_s,
        raise_on_status=False,
        json={"max_results": 1},
    )
    return answer.status_code, answer.text


def is_outage(error: BaseException) -> bool:
    """Whether the tracker could not be asked. If not, it understood and said no: asking again will not help."""
    status = http_status(error)
    if status is not None:
        # A database that was made read-only, as hosted ones are while their disk is full, MLflow calls a bad request.
        return not 400 <= status < 500 or status in (408, 429) or (status == 400 and "read-only" in str(error))
    return any(isinstance(cause, (OSError, *_bucket_connection_errors())) for cause in causes(error))


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error of the client comes from; None where there was none.

    The answer may be the tracker's, that of a proxy before it, or that of a bucket which artifacts go to.
    """
    return next((status for cause in causes(error) if (status := _own_status(cause)) is not None), None)


def _own_status(error: BaseException) -> int | None:
    if isinstance(error, MlflowException):
        # Of an answer that is not its own MLflow keeps the status in the text alone.
        told = _STATUS.search(error.message)
        return int(told[1]) if told else int(error.get_http_status_code())
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, Mapping):  # botocore's
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return answer if isinstance(answer, int) else None
    return getattr(answer, "status_code", None)


def _bucket_connection_errors() -> tuple[type[Exception], ...]:
    """Return what boto3 raises when a bucket does not answer; nothing where no bucket was ever asked."""
    errors = sys.modules.get("botocore.exceptions")
    return () if errors is None else (errors.ConnectionError, errors.HTTPClientError)
