"""The tracker's address: what it means, and what is wrong with it, said before anything runs."""

import base64
import contextlib
import http.server
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from massive_sft.core.errors import InvalidInput
from massive_sft.tracking import connection_check, store, tracking_problem
from massive_sft.tracking.address import (
    artifact_location,
    client_address,
    database_path,
    filesystem,
    local_folder,
    resolve_uri,
)
from massive_sft.tracking.ui import serve_ui, ui_address, ui_command

MOUNTS = r"""proc /proc proc rw 0 0
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/me/fast\040disk xfs rw 0 0
sshfs /mnt/far fuse.sshfs rw 0 0
/dev/vdc /mnt/usb fuseblk rw 0 0
old /mnt/twice nfs rw 0 0
new /mnt/twice ext4 rw 0 0
"""


@pytest.fixture
def mounts(tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS)
    return tmp_path / "mounts"


@contextlib.contextmanager
def serving(status: int = 200, body: bytes = b'{"experiments": []}', login: str = "", tls=None, **headers: str):
    """A server that answers the client's request so, and everything else with 404; gives its port and last request."""
    seen = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.update(self.headers, path=self.path)
            expected = "Basic " + base64.b64encode(login.encode()).decode()
            let_in = not login or self.headers["Authorization"] == expected
            self.answer(status if let_in else 401, body if let_in else b"{}")

        def do_GET(self):
            self.answer(200 if self.path == "/login" else 404, b"<html>")

        def answer(self, code: int, text: bytes):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        if tls is not None:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port, seen
        running.shutdown()


def problem_of(uri: str) -> str:
    """Return why a tracker cannot be used; empty when it can."""
    return str(tracking_problem(uri, "tracking.mlflow", Path("/nowhere")) or "")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp/x", "ext4"),
        ("/home/me/x", "nfs4"),
        ("/home/me/fast disk/x", "xfs"),
        ("/homes", "ext4"),
        ("/mnt/far/a", "fuse.sshfs"),
        ("/mnt/twice", "ext4"),
    ],
)
def test_filesystem_of_a_path_is_that_of_its_innermost_mount(mounts, path, kind):
    assert filesystem(Path(path), mounts) == kind


@pytest.mark.parametrize("root", ["/tmp/x", "/home/me/fast disk/x", "/mnt/usb/x"])
def test_local_store_on_a_local_disk_lies_beside_the_ledger(mounts, root):
    assert local_folder(Path(root), mounts) == Path(root)


def test_local_store_of_a_network_root_lies_in_the_state_folder_one_for_each_ledger(mounts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folders = {local_folder(Path(root), mounts) for root in ("/home/me/a", "/home/me/b", "/mnt/far/a")}
    assert len(folders) == 3
    assert all(folder.parent == tmp_path / "state" / "massive-sft" for folder in folders)


def test_local_store_where_no_mounts_are_told_lies_beside_the_ledger(tmp_path):
    assert local_folder(tmp_path, tmp_path / "nothing") == tmp_path


def test_empty_address_resolves_to_a_database_with_its_artifacts_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = resolve_uri("${MLFLOW_TRACKING_URI:-}", tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(uri) == f"file://{tmp_path}/mlflow-artifacts"


def test_address_of_a_root_with_any_name_means_that_root():
    root = Path("/100%/a b?c#d/é%20")
    uri = resolve_uri("", root)
    assert database_path(uri) == root / "mlflow.db"
    assert not set("?# é") & set(uri)
    assert f"--backend-store-uri={client_address(uri)}" in ui_command(uri)


def test_address_takes_variables_and_a_server_chooses_its_artifacts_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKER", "tracker.example:5000")
    uri = resolve_uri("http://${TRACKER}", tmp_path)
    assert uri == "http://tracker.example:5000"
    assert artifact_location(uri) is None


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("ftp://x", "must be a server's"),
        ("databricks", "must be a server's"),
        ("http://me:hunter2@[host", "must be http"),
        ("http://me:hunter2/x@host", "%2F"),
        ("http://me:hunter2 x@host", "%20"),
        ("http:/me:hunter2@host", "must be http"),
        ("https://me:hunter2@host:port", "must be http"),
        ("me:hunter2@host:5000", "must be a server's"),
        ("postgresql://me:hunter2/x@host/db", "must be a server's"),
        ("sqlite:///mlflow.db", "absolute path"),
        ("sqlite:////x/a?b.db", "%3F"),
        ("${NOT_SET_ANYWHERE}", "variable"),
    ],
)
def test_wrong_address_is_said_by_both_check_and_run(tmp_path, uri, rule):
    assert rule in problem_of(uri)
    with pytest.raises(InvalidInput, match=rule) as refused:
        resolve_uri(uri, tmp_path)
    assert "hunter2" not in f"{problem_of(uri)} {refused.value}"


def test_server_is_asked_as_the_client_asks_below_its_path_with_the_credentials_of_its_address(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    with serving(login="me:secret!") as (port, seen):
        assert not problem_of(f"http://me:secret%21@127.0.0.1:{port}/mlflow/")
        assert seen["path"] == "/mlflow/api/2.0/mlflow/experiments/search"


def test_server_behind_a_login_takes_the_credentials_of_the_environment(monkeypatch):
    with serving(login="me:hunter2") as (port, seen):
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
        assert "does not let in (HTTP 401): check MLFLOW_TRACKING_USERNAME" in problem_of(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter3")
        assert "hunter3" not in problem_of(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        assert not problem_of(f"http://127.0.0.1:{port}")
    with serving() as (port, seen):
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
        assert not problem_of(f"http://127.0.0.1:{port}")
        assert seen["Authorization"] == "Bearer abc"


def test_server_with_a_certificate_of_its_own_is_trusted_as_mlflow_is_told_to(tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=tracker",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    command = ["openssl", "req", "-x509", "-out", certificate, "-keyout", key, *options]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(tls=tls) as (port, _):
        uri = f"https://127.0.0.1:{port}"
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate to trust" in problem_of(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert not problem_of(uri)
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert not problem_of(uri)


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (
            {"status": 403, "body": b'{"error_code": "PERMISSION_DENIED", "message": "no"}'},
            "does not let in (HTTP 403)",
        ),
        ({"status": 404, "body": b"{}"}, "has no MLflow here (HTTP 404)"),
        ({"status": 500}, "not to MLflow's client (HTTP 500)"),
        ({"status": 429, "Retry-After": "1000"}, "not to MLflow's client (HTTP 429)"),
        ({"status": 302, "Location": "/login"}, "not as a tracking server"),
        ({"status": 307, "Location": "/"}, "redirects"),
        ({"body": b"<html>"}, "not as a tracking server"),
        ({"body": b"[]"}, "not as a tracking server"),
        ({"body": b'{"experiments": 3}'}, "not as a tracking server"),
        ({"body": b'{"status": "ok"}'}, "not as a tracking server"),
        ({"body": b"{}"}, ""),
    ],
)
def test_answer_that_is_no_tracking_servers_is_said_in_a_sentence(answer, rule):
    with serving(**answer) as (port, _):
        problem = problem_of(f"http://me:hunter2@127.0.0.1:{port}")
    assert rule in problem if rule else not problem
    assert "hunter2" not in problem


def test_server_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # would take minutes
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        problem = problem_of(f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}")
    assert "is no tracking server that answers ([Errno 111] Connection refused)" in problem
    assert "hunter2" not in problem
    with serving() as (port, _):
        assert "wrong version number" in problem_of(f"https://127.0.0.1:{port}")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert "NO_PROXY" in problem_of(f"http://127.0.0.1:{port}")


def test_server_that_says_nothing_or_never_ends_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(connection_check, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(connection_check, "ANSWER_TIMEOUT_S", 0.6)

    def drip(listening):
        connection, _ = listening.accept()
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert "timed out" in problem_of(address)
        listening.accept()[0].close()
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        assert "is no tracking server that answers" in problem_of(address)


def test_database_is_a_problem_when_its_folder_or_its_content_is_wrong(tmp_path):
    (tmp_path / "text.db").write_text("no database, though long enough to look like one" * 9)
    sqlite3.connect(tmp_path / "good.db").close()
    (tmp_path / "folder.db").mkdir()
    assert "is no SQLite database" in problem_of(f"sqlite:///{tmp_path}/text.db")
    assert "folder that can be written" in problem_of(f"sqlite:///{tmp_path}/none/x.db")
    assert "must be a file" in problem_of(f"sqlite:///{tmp_path}/folder.db")
    assert not problem_of(f"sqlite:///{tmp_path}/good.db")
    assert not problem_of(f"sqlite:///{tmp_path}/new.db")


def test_store_whose_writer_was_killed_amid_a_transaction_can_be_used(tmp_path):
    """SQLite rolls back what is half written when it is opened next, which it cannot where that is only to be read."""
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as made:
        made.execute("create table alembic_version (a)")
        made.execute("create table experiments (a)")
        made.commit()
    if (writer := os.fork()) == 0:
        database = sqlite3.connect(tmp_path / "mlflow.db")
        database.execute("pragma cache_size = 1")  # so that pages are written before the transaction ends
        database.execute("begin")
        database.executemany("insert into experiments values (?)", [("x" * 4000,)] * 50)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    assert (tmp_path / "mlflow.db-journal").stat().st_size
    assert store.database_problem(tmp_path / "mlflow.db", "p") is None


def test_local_store_is_looked_at_though_no_address_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCKED_S", 0.1)
    assert tracking_problem("", "p", tmp_path / "new" / "root") is None
    (tmp_path / "file").touch()
    assert "folder that can be written" in str(tracking_problem("", "p", tmp_path / "file" / "root"))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", timeout=0)) as holder:
        holder.execute("create table runs (a)")
        holder.commit()
        assert "something else than MLflow" in str(tracking_problem("", "p", tmp_path))
        holder.execute("begin exclusive")
        assert tracking_problem("", "p", tmp_path) is None, "who holds it may write into it: that is looked at later"


def test_checking_an_address_does_not_import_mlflow():
    code = "import sys, massive_sft.tracking, massive_sft.tracking.ui; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_pages_of_a_local_store_are_served_on_this_machine_only():
    command = ui_command("sqlite:////x/mlflow.db", 5001)
    assert {"--backend-store-uri=sqlite+pysqlite:////x/mlflow.db", "--host=127.0.0.1", "--port=5001"} <= set(command)
    assert ui_address("sqlite:////x/mlflow.db", 5001) == "http://127.0.0.1:5001"


def test_pages_of_a_server_are_its_own():
    assert ui_address("https://me:hunter2@tracker.example/mlflow") == "https://tracker.example/mlflow"
    with pytest.raises(InvalidInput, match="open its address") as refusal:
        ui_command("https://me:hunter2@tracker.example")
    assert "hunter2" not in str(refusal.value)


def test_signal_while_the_server_is_forked_ends_it_too(tmp_path, monkeypatch):
    """The parent is hit before it knows the child: as a terminal that is closed at once."""
    started = []

    class Struck(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGHUP)

    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(subprocess, "Popen", Struck)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert serve_ui(f"sqlite:///{tmp_path}/mlflow.db", port) == 128 + signal.SIGHUP
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_pages_of_nothing_and_on_a_taken_port_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="nothing to show yet"):
        serve_ui(f"sqlite:///{tmp_path}/mlflow.db")
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInput, match="--port: must be free"):
            serve_ui(f"sqlite:///{tmp_path}/mlflow.db", taken.getsockname()[1])
