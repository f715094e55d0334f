"""``cluster/mlflow.sh`` with PostgreSQL, artifacts in a bucket, and logins: dead, slow, full, restarted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from processes import free_port, is_healthy
from test_mirror import cell_id, coordinates, everything, ledger, runs_of, until, write
from test_mirror_refusals import Refuse, proxy

from massive_sft.core.errors import InvalidInput
from massive_sft.ledger.store import Ledger
from massive_sft.tracking import mirror as mirroring
from massive_sft.tracking import tracking_problem
from massive_sft.tracking.mirror import Mirror, mirror_all

__all__ = ["empty_store", "ledger"]

INITDB = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(INITDB is None, reason="PostgreSQL is not installed (Debian: postgresql)"),
]
SCRIPT = Path(__file__).parents[1] / "cluster" / "mlflow.sh"
BUCKET = "artifacts"
PASSWORDS = {"admin": "an-admins-password", "reader": "a-readers-password"}
NAMES = {cell_id(number): coordinates(2) for number in (1, 2)}


class Stack:
    """The script with its database, beside a bucket."""

    def __init__(self, folder: Path, bucket: str):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment = {"MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow", "MLFLOW_S3_ENDPOINT_URL": bucket}
        self.environment |= {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"]}
        self.environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [SCRIPT, "--postgres", self.folder, str(self.port)],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.answers, 120)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
        return is_healthy(self.port)

    def stop(self) -> int:
        """End the script as a terminal or a scheduler does; return its status once nothing of it is left."""
        self.process.terminate()
        status = self.process.wait(60)
        assert not (self.folder / "postgres" / "postmaster.pid").exists()
        return status

    def postgres(self) -> int:
        """Return the process id of the database."""
        return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])

    def processes(self) -> list[psutil.Process]:
        """Return the database's processes: each is in a group of its own."""
        parent = psutil.Process(self.postgres())
        return [parent, *parent.children()]

    def sql(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(host=str(self.folder / "postgres"), dbname="postgres", autocommit=True) as database:
            database.execute(statement)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of a real S3 server on this machine, and its keys in the environment."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
        made = boto3.resource("s3", endpoint_url=endpoint).Bucket(BUCKET)
        made.create()
        yield made
    server.stop()


@pytest.fixture(scope="module")
def stack(bucket: Any) -> Iterator[Stack]:
    for name in ("psycopg", "flask_wtf"):
        pytest.importorskip(name)
    # The database's user must reach it, and the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="mlflow-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        made = Stack(Path(folder), os.environ["MLFLOW_S3_ENDPOINT_URL"])
        made.start()
        yield made
        if made.process.poll() is None:
            made.stop()


@pytest.fixture
def empty_store() -> bytes:
    """No local store is used here."""
    return b""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(mirroring, "MAX_DELAY_S", 0.5)


@pytest.fixture(autouse=True)
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, "admin")


def log_in(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[user])


def keys(bucket: Any, name: str) -> list[str]:
    return [item.key for item in bucket.objects.all() if item.key.endswith(name)]


def test_sweep_is_shown_with_its_files_in_the_bucket_and_strangers_are_told_why_not(
    ledger: Ledger, stack: Stack, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger, 1)
    assert tracking_problem(stack.uri, "p", ledger.root, "study") is None
    assert not mirror_all(ledger, "study", NAMES, stack.uri)
    run = runs_of(stack.uri, "study")[1][cell_id(1)]
    assert run.data.metrics["mmlu/acc"] == 0.25
    assert [key for key in keys(bucket, "record.json") if run.info.run_id in key]

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert "does not let in (HTTP 401)" in str(tracking_problem(stack.uri, "p", ledger.root, "study"))
    with pytest.raises(InvalidInput, match="HTTP 401"):
        Mirror.open(ledger, "study", NAMES, stack.uri)


def test_user_who_may_only_read_is_refused_at_the_start(
    ledger: Ledger, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import get_app_client

    assert not mirror_all(ledger, "others", {}, stack.uri)
    get_app_client("basic-auth", tracking_uri=stack.uri).create_user("reader", PASSWORDS["reader"])
    log_in(monkeypatch, "reader")
    with pytest.raises(InvalidInput, match="Permission denied"):
        Mirror.open(ledger, "others", NAMES, stack.uri)


def test_artifacts_that_the_client_itself_puts_into_the_bucket_and_a_bucket_that_refuses(
    ledger: Ledger, stack: Stack, bucket: Any
) -> None:
    write(ledger, 1)
    MlflowClient(stack.uri).create_experiment("direct", artifact_location=f"s3://{BUCKET}/direct")
    assert not mirror_all(ledger, "direct", NAMES, stack.uri)
    assert [key for key in keys(bucket, "record.json") if key.startswith("direct/")]
    MlflowClient(stack.uri).create_experiment("nowhere", artifact_location="s3://no-such-bucket/x")
    assert not mirror_all(ledger, "nowhere", NAMES, stack.uri)
    run = runs_of(stack.uri, "nowhere")[1][cell_id(1)]
    assert run.data.metrics["mmlu/acc"] == 0.25
    assert "NoSuchBucket" in run.data.tags["massive_sft.artifacts"]


def test_full_bucket_is_waited_for(ledger: Ledger, stack: Stack, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own bucket, through a proxy that answers as a full one does."""
    full = [True]
    refuse: Refuse = lambda method, path, size: 507 if full and method == "PUT" else None  # noqa: E731
    endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]

    class Endpoint:
        port = int(endpoint.rpartition(":")[2])

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    write(ledger, 1)
    MlflowClient(stack.uri).create_experiment("full", artifact_location=f"s3://{BUCKET}/full")
    with proxy(Endpoint(), refuse) as before:  # type: ignore[arg-type]
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", before.uri)
        running = Mirror.open(ledger, "full", NAMES, stack.uri)
        until(lambda: "507" in running.problem)
        full.clear()
        until(lambda: not running.pending)
        assert not running.close()
    assert "massive_sft.artifacts" not in runs_of(stack.uri, "full")[1][cell_id(1)].data.tags


def interrupt(stack: Stack, how: str) -> None:
    match how:
        case "dead":
            os.kill(
                stack.postgres(), signal.SIGQUIT
            )  # an immediate shutdown: as a crash, it recovers at the next start
            until(lambda: not (stack.folder / "postgres" / "postmaster.pid").exists())
        case "full":  # what hosted databases do when their disk is full
            stack.sql("alter database mlflow set default_transaction_read_only = on")
            stack.sql("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
        case "slow":
            for process in stack.processes():
                process.suspend()


def mend(stack: Stack, how: str) -> None:
    match how:
        case "dead":
            stack.stop()
            stack.start()
        case "full":
            stack.sql("alter database mlflow reset default_transaction_read_only")
            stack.sql("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
        case "slow":
            for process in stack.processes():
                process.resume()


@pytest.mark.parametrize("how", ["dead", "full", "slow"])
def test_database_that_fails_midway_holds_nobody_up_and_is_caught_up_run_for_run(
    how: str, ledger: Ledger, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = f"database-{how}"
    running = Mirror.open(ledger, sweep, NAMES, stack.uri)
    running.put(write(ledger, 1))
    until(lambda: not running.pending)
    with monkeypatch.context() as patch:  # a busy machine's server that is well may need longer
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        interrupt(stack, how)
        try:
            began = time.monotonic()
            running.put(write(ledger, 2))
            assert time.monotonic() - began < 1
            until(lambda: bool(running.problem))
        finally:
            mend(stack, how)
    until(lambda: not running.pending)
    assert not running.close()
    shown = everything(stack.uri, sweep)
    assert shown.keys() == {sweep, *NAMES}
    assert not mirror_all(ledger, sweep, NAMES, stack.uri)
    assert everything(stack.uri, sweep) == shown


def test_script_ends_with_its_database_and_goes_on_where_it_was(ledger: Ledger, stack: Stack) -> None:
    write(ledger, 1)
    assert not mirror_all(ledger, "kept", NAMES, stack.uri)
    before = everything(stack.uri, "kept")
    assert stack.stop() == 143
    with pytest.raises(InvalidInput, match="is no tracking server that answers"):
        Mirror.open(ledger, "kept", NAMES, stack.uri)
    stack.start()
    assert everything(stack.uri, "kept") == before
