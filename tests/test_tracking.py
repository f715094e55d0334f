"""The tracker's address: what it means, and what is wrong with it, said before anything runs."""

import base64
import http.server
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from massive_sft.errors import InvalidInput
from massive_sft.tracking import tracking_problem
from massive_sft.tracking.address import artifact_location, filesystem, local_folder, resolve
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


@pytest.fixture
def server():
    """A server whose health answers, and the headers of the last request."""
    seen = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.update(self.headers, path=self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port, seen
        running.shutdown()


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
    uri = resolve("${MLFLOW_TRACKING_URI:-}", tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(uri) == f"{tmp_path}/mlflow-artifacts"


def test_address_takes_variables_and_a_server_chooses_its_artifacts_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKER", "tracker.example:5000")
    uri = resolve("http://${TRACKER}", tmp_path)
    assert uri == "http://tracker.example:5000"
    assert artifact_location(uri) is None


@pytest.mark.parametrize(
    ("uri", "rule"),
    [("ftp://x", "must be a server's"), ("sqlite:///mlflow.db", "absolute path"), ("${NOT_SET_ANYWHERE}", "variable")],
)
def test_wrong_address_is_said_by_both_check_and_run(tmp_path, uri, rule):
    assert rule in str(tracking_problem(uri, "tracking.mlflow"))
    with pytest.raises(InvalidInput, match=rule):
        resolve(uri, tmp_path)


def test_server_that_answers_is_no_problem_and_gets_the_credentials_of_its_address(server):
    port, seen = server
    assert tracking_problem(f"http://me:secret%21@127.0.0.1:{port}/mlflow/", "tracking.mlflow") is None
    assert seen["path"] == "/mlflow/health"
    assert base64.b64decode(seen["Authorization"].removeprefix("Basic ")) == b"me:secret!"


def test_server_that_does_not_answer_is_named_without_its_password():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        problem = str(tracking_problem(f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}", "tracking.mlflow"))
    assert "is no tracking server that answers" in problem
    assert "hunter2" not in problem


def test_database_is_a_problem_when_its_folder_or_its_content_is_wrong(tmp_path):
    (tmp_path / "text.db").write_text("no database, though long enough to look like one" * 9)
    sqlite3.connect(tmp_path / "good.db").close()
    assert "is no SQLite database" in str(tracking_problem(f"sqlite:///{tmp_path}/text.db", "p"))
    assert "can be written" in str(tracking_problem(f"sqlite:///{tmp_path}/none/x.db", "p"))
    assert tracking_problem(f"sqlite:///{tmp_path}/good.db", "p") is None
    assert tracking_problem(f"sqlite:///{tmp_path}/new.db", "p") is None


def test_checking_an_address_does_not_import_mlflow():
    code = "import sys, massive_sft.tracking, massive_sft.tracking.ui; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_pages_of_a_local_store_are_served_on_this_machine_only():
    command = ui_command("sqlite:////x/mlflow.db", 5001)
    assert {"--backend-store-uri=sqlite:////x/mlflow.db", "--host=127.0.0.1", "--port=5001"} <= set(command)
    assert ui_address("sqlite:////x/mlflow.db", 5001) == "http://127.0.0.1:5001"


def test_pages_of_a_server_are_its_own():
    assert ui_address("https://me:hunter2@tracker.example/mlflow") == "https://tracker.example/mlflow"
    with pytest.raises(InvalidInput, match="open its address") as refusal:
        ui_command("https://me:hunter2@tracker.example")
    assert "hunter2" not in str(refusal.value)


def test_pages_of_a_mirrored_sweep_open_until_interrupted(tmp_path):
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from massive_sft.tracking.ui import serve_ui; exit(serve_ui('sqlite:///{tmp_path}/mlflow.db', {port}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while tracking_problem(f"http://127.0.0.1:{port}", "p"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"<title>MLflow</title>" in page.read()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


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
