"""What a tracker refuses for good is told apart from a tracker that cannot be asked, and said."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from test_mirror import (
    SWEEP,
    Forward,
    Server,
    benchmark,
    cell_id,
    coordinates,
    empty_store,
    files_of,
    ledger,
    runs_of,
    shared_server,
    until,
    uri_of,
    write,
)

from massive_sft.core.errors import InvalidInput
from massive_sft.ledger.store import Ledger
from massive_sft.tracking import address, tracking_problem
from massive_sft.tracking import mirror as mirroring
from massive_sft.tracking.client import is_outage
from massive_sft.tracking.mirror import Mirror, mirror_all

__all__ = ["empty_store", "ledger", "shared_server"]

Refuse = Callable[[str, str, int], int | None]
"""Returns the status with which a request of this method, path and size is refused; None lets it through."""


class Proxy(ThreadingHTTPServer):
    """A proxy before a server that refuses what it is told to, with a page of its own."""

    def __init__(self, server: Server, refuse: Refuse):
        super().__init__(("127.0.0.1", 0), Checked)
        self.server, self.refuse, self.armed = server, refuse, False
        self.uri = f"http://127.0.0.1:{self.server_port}"


class Checked(Forward):
    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        status = self.server.refuse(self.command, self.path, size)
        if status is None:
            super().do_GET()
            return
        self.rfile.read(size)
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>no</html>")

    do_POST = do_PATCH = do_PUT = do_GET


@contextlib.contextmanager
def proxy(server: Server, refuse: Refuse) -> Iterator[Proxy]:
    with Proxy(server, refuse) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def answered(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    return response


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


class BucketError(Exception):
    """As botocore raises it."""

    def __init__(self, status: int):
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


NOT_JSON = "API request to endpoint /x failed with error code {} != 200. Response body: '<html>'"


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (requests.HTTPError("too large", response=answered(413)), False),
        (requests.HTTPError("forbidden", response=answered(403)), False),
        (requests.HTTPError("gateway", response=answered(502)), True),
        (requests.HTTPError("slow down", response=answered(429)), True),
        (requests.ConnectionError("refused"), True),
        (MlflowException(NOT_JSON.format(413)), False),
        (MlflowException(NOT_JSON.format(503)), True),
        (MlflowException("API request failed with exception ConnectionError"), True),
        (RestException({"error_code": "BAD_REQUEST", "message": "cannot INSERT in a read-only transaction"}), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such run"}), False),
        (BucketError(403), False),
        (BucketError(503), True),
        (raised_from(ValueError("Failed to upload"), BucketError(403)), False),
        (raised_from(ValueError("Failed to upload"), BucketError(500)), True),
        (ModuleNotFoundError("No module named 'boto3'"), False),
    ],
)
def test_error_is_an_outage_where_asking_again_may_help(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_bucket_that_does_not_answer_is_an_outage() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    assert is_outage(exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"))
    assert is_outage(exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1:9"))
    assert not is_outage(exceptions.NoCredentialsError())


def test_file_that_a_proxy_refuses_is_missing_with_the_reason_and_nothing_else_is(
    ledger: Ledger, shared_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    refused = [413]

    def refuse(method: str, path: str, size: int) -> int | None:
        return refused[0] if refused and "artifacts" in path and path.endswith("record.json") else None

    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    with proxy(shared_server, refuse) as before:
        left = mirror_all(ledger, "refused", names, before.uri)
        assert not left, left
        _, children = runs_of(shared_server.uri, "refused")
        for run in children.values():
            assert run.data.tags["massive_sft.artifacts"].startswith("missing: record.json (413 ")
            assert run.data.metrics["mmlu/acc"] == 0.25
            assert set(files_of(MlflowClient(shared_server.uri), run.info.run_id)) == {"cell.json", "layers.csv"}
        assert caplog.text.count("record.json cannot be uploaded") == 1
        # Another run leaves it at that; `mirror` tries again.
        assert not Mirror.open(ledger, "refused", names, before.uri).close()
        refused.clear()
        assert not mirror_all(ledger, "refused", names, before.uri)
    for run in runs_of(shared_server.uri, "refused")[1].values():
        assert "massive_sft.artifacts" not in run.data.tags
        assert "record.json" in files_of(MlflowClient(shared_server.uri), run.info.run_id)


def test_proxy_that_is_out_of_order_is_waited_for(
    ledger: Ledger, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    statuses = [502, 503, 504]

    def refuse(method: str, path: str, size: int) -> int | None:
        return statuses.pop() if statuses and method == "PUT" else None

    with proxy(shared_server, refuse) as before:
        running = Mirror.open(ledger, "gateway", {cell_id(1): coordinates(2)}, before.uri)
        running.put(write(ledger))
        until(lambda: not running.pending)
        assert not running.close()
    run = runs_of(shared_server.uri, "gateway")[1][cell_id(1)]
    assert "record.json" in files_of(MlflowClient(shared_server.uri), run.info.run_id)


def test_numbers_are_shown_while_the_place_of_files_is_out_of_order_and_the_reason_is_said(
    ledger: Ledger, shared_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [500]

    def refuse(method: str, path: str, size: int) -> int | None:
        return broken[0] if broken and method == "PUT" else None

    names = {write(ledger): coordinates(2)}
    with proxy(shared_server, refuse) as before:
        left = mirror_all(ledger, "no-files", names, before.uri)
        assert left.items == (cell_id(1),)
        assert "500 error responses" in left.reason and "500 error responses" in caplog.text
        (run,) = runs_of(shared_server.uri, "no-files")[1].values()
        assert run.info.status == "FINISHED" and run.data.metrics["mmlu/acc"] == 0.25
        broken.clear()
        assert not mirror_all(ledger, "no-files", names, before.uri)
    assert "record.json" in files_of(MlflowClient(shared_server.uri), run.info.run_id)


def test_tracker_that_is_lost_before_anybody_looked_is_not_said_to_have_all_cells(
    ledger: Ledger, shared_server: Server, tmp_path: Path
) -> None:
    lost: list[bool] = []
    names = {write(ledger): coordinates(2)}
    with proxy(shared_server, lambda *_: 429 if lost else None) as before:
        running = Mirror.open(ledger, "unseen", {}, before.uri)
        running.close()
        lost.append(True)
        running = Mirror(ledger, "unseen", names, before.uri, mirroring.AS_RECORDED)
        running.artifact(tmp_path / "sweep.yaml")
        running._thread.start()
        left = running.close()
    assert left.items == (tmp_path / "sweep.yaml",)
    assert "0 cells and 1 files are not there, and what else it lacks is not known" in str(left)


def test_credentials_that_expire_midway_are_said_and_hold_nobody_up(
    ledger: Ledger, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    expired = []

    def refuse(method: str, path: str, size: int) -> int | None:
        return 401 if expired else None

    names = {cell_id(number): coordinates(2) for number in (1, 2)}
    with proxy(shared_server, refuse) as before:
        running = Mirror.open(ledger, "expired", names, before.uri)
        running.put(write(ledger, 1))
        until(lambda: not running.pending)
        expired.append(True)
        running.put(write(ledger, 2))
        until(lambda: bool(running.problem))
        left = running.close()
        assert left.items == (cell_id(2),)
        assert "401" in left.reason
        expired.clear()
        assert not Mirror.open(ledger, "expired", names, before.uri).close()
    assert set(runs_of(shared_server.uri, "expired")[1]) == set(names)


def test_artifacts_in_a_bucket_without_boto3_are_refused_by_check_and_run_before_anything_is_trained(
    ledger: Ledger, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient(shared_server.uri).create_experiment("bucket", artifact_location="s3://somewhere/else")
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    rule = r"needs boto3: `pip install 'massive-sft\[s3\]'`"
    with pytest.raises(InvalidInput, match=rule):
        Mirror.open(ledger, "bucket", {}, shared_server.uri)
    assert tracking_problem(shared_server.uri, "p", ledger.root, "bucket") is not None
    assert tracking_problem(shared_server.uri, "p", ledger.root, "another") is None


def test_store_of_ones_own_that_was_made_with_a_bucket_is_refused_too(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient(uri_of(ledger)).create_experiment(SWEEP, artifact_location="s3://somewhere/else")
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match="needs boto3"):
        Mirror.open(ledger, SWEEP, {}, "")


# One name, two ledgers


def test_two_ledgers_with_a_sweep_of_one_name_have_each_their_own_runs(ledger: Ledger, tmp_path: Path) -> None:
    uri = uri_of(ledger)
    other = Ledger.open(tmp_path / "other")
    write(ledger)
    write(other, scores={"aaaaaaaaaaaa": benchmark(0.75)})
    names = {cell_id(1): coordinates(2)}
    assert not mirror_all(ledger, SWEEP, names, uri)
    for root in (other, ledger, other):
        mirror = Mirror.open(root, SWEEP, names, uri)
        assert mirror.elsewhere == str((ledger if root is other else other).root)
        assert not mirror.close()
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(SWEEP).experiment_id])
    parents = {run.data.tags["massive_sft.ledger"]: run for run in found if "massive_sft.sweep" in run.data.tags}
    cells = [run for run in found if "massive_sft.cell" in run.data.tags]
    assert len(found) == len(parents) + len(cells) == 4
    assert parents[str(ledger.root)].info.run_name == SWEEP
    assert parents[str(other.root)].info.run_name.startswith(f"{SWEEP} @ ")
    shown = {run.data.tags["massive_sft.parent"]: run.data.metrics["mmlu/acc"] for run in cells}
    assert shown == {
        parents[str(ledger.root)].info.run_id: 0.25,
        parents[str(other.root)].info.run_id: 0.75,
    }


def test_runs_of_an_earlier_version_stay_with_their_ledger_wherever_it_was_moved(
    ledger: Ledger, tmp_path: Path
) -> None:
    names = {write(ledger): coordinates(2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    parent, _ = runs_of(uri_of(ledger))
    MlflowClient(uri_of(ledger)).delete_tag(parent.info.run_id, "massive_sft.ledger_id")
    ledger.root.rename(tmp_path / "moved")
    moved = Ledger.open(tmp_path / "moved")
    assert not mirror_all(moved, SWEEP, names, "")
    again, children = runs_of(uri_of(moved))
    assert (again.info.run_id, len(children)) == (parent.info.run_id, 1)
    assert again.data.tags["massive_sft.ledger"] == str(moved.root)


# What is noted down of the tracker


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the filters of all searches for runs from now on."""
    asked: list[str] = []
    search = MlflowClient.search_runs

    def counted(self: MlflowClient, experiments: list[str], query: str = "", **options: object) -> object:
        asked.append(query)
        return search(self, experiments, query, **options)

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    return asked


def reads_all(queries: list[str]) -> bool:
    return any("massive_sft.parent" in query and "massive_sft.cell" not in query for query in queries)


def test_second_connection_reads_neither_all_runs_nor_all_records(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {write(ledger, number): coordinates(2) for number in range(1, 6)}
    assert not mirror_all(ledger, SWEEP, names, "")
    asked = counted_reads(monkeypatch)
    opened: list[str] = []
    history = Ledger.history
    monkeypatch.setattr(Ledger, "history", lambda self, cell: opened.append(cell) or history(self, cell))
    assert not Mirror.open(ledger, SWEEP, names, "").close()
    assert not reads_all(asked)
    assert opened == []
    write(ledger, 3, scores={"aaaaaaaaaaaa": benchmark(0.5)})
    assert not Mirror.open(ledger, SWEEP, names, "").close()
    assert set(opened) == {cell_id(3)}
    assert runs_of(uri_of(ledger))[1][cell_id(3)].data.metrics["mmlu/acc"] == 0.5


def test_store_that_was_set_back_is_read_and_brought_up_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {cell_id(number): coordinates(2) for number in (1, 2)}
    write(ledger, 1)
    assert not mirror_all(ledger, SWEEP, names, "")
    before = (ledger.root / "mlflow.db").read_bytes()
    write(ledger, 2)
    assert not Mirror.open(ledger, SWEEP, names, "").close()
    (ledger.root / "mlflow.db").write_bytes(before)
    asked = counted_reads(monkeypatch)
    assert not Mirror.open(ledger, SWEEP, names, "").close()
    assert reads_all(asked)
    assert set(runs_of(uri_of(ledger))[1]) == set(names)


def test_run_that_was_removed_by_hand_comes_back_with_the_verb_mirror(ledger: Ledger) -> None:
    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    MlflowClient(uri_of(ledger)).delete_run(runs_of(uri_of(ledger))[1][cell_id(1)].info.run_id)
    assert not mirror_all(ledger, SWEEP, names, "")
    client = MlflowClient(uri_of(ledger))
    found = client.search_runs([client.get_experiment_by_name(SWEEP).experiment_id], "tags.`massive_sft.cell` != ''")
    assert {run.data.tags["massive_sft.cell"] for run in found} == set(names)


def test_sweeps_own_run_that_was_removed_by_hand_is_restored_and_no_cell_has_two(ledger: Ledger) -> None:
    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    parent, before = runs_of(uri_of(ledger))
    MlflowClient(uri_of(ledger)).delete_run(parent.info.run_id)
    assert not mirror_all(ledger, SWEEP, names, "")
    client = MlflowClient(uri_of(ledger))
    found = client.search_runs([client.get_experiment_by_name(SWEEP).experiment_id])
    assert {run.info.run_id for run in found} == {run.info.run_id for run in (parent, *before.values())}


def test_run_whose_tag_was_removed_by_hand_holds_up_nobody(ledger: Ledger) -> None:
    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    run = runs_of(uri_of(ledger))[1][cell_id(1)]
    MlflowClient(uri_of(ledger)).delete_tag(run.info.run_id, "massive_sft.cell")
    assert not mirror_all(ledger, SWEEP, names, "")
    found = MlflowClient(uri_of(ledger)).search_runs([run.info.experiment_id], "tags.`massive_sft.cell` != ''")
    assert {run.data.tags["massive_sft.cell"] for run in found} == set(names)


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: "{", lambda text: text.replace("{", "[", 3)])
def test_damaged_notes_cost_no_more_than_writing_again(ledger: Ledger, damage: Callable[[str], str]) -> None:
    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    notes = ledger.sweep_dir(SWEEP) / "mirror-shown.jsonl"
    notes.write_text(damage(notes.read_text()))
    assert not Mirror.open(ledger, SWEEP, names, "").close()
    assert set(runs_of(uri_of(ledger))[1]) == set(names)
    assert json.loads(notes.read_text().splitlines()[0]).keys() == {"parent", "token"}


def test_start_does_not_wait_for_the_runs_to_be_read(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = {write(ledger): coordinates(2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    (ledger.sweep_dir(SWEEP) / "mirror-shown.jsonl").unlink()
    go, search = threading.Event(), MlflowClient.search_runs

    def slow(self: MlflowClient, experiments: list[str], query: str = "", **options: object) -> object:
        assert not reads_all([query]) or go.wait(30)
        return search(self, experiments, query, **options)

    monkeypatch.setattr(MlflowClient, "search_runs", slow)
    running = Mirror.open(ledger, SWEEP, names, "")
    left = running.close(0.1)
    assert left and not left.items
    assert str(left) == "what it lacks is not known (time was up before everything was written)"
    go.set()
    assert not running.close()


def test_what_another_sweep_added_later_changes_neither_times_nor_attempt(ledger: Ledger) -> None:
    cell = write(ledger)
    names = {cell: coordinates(2)}
    assert not mirror_all(ledger, SWEEP, names, "")
    before = runs_of(uri_of(ledger))[1][cell]
    later = {"created": "2026-03-01T00:00:00+00:00", "finished": "2026-03-01T00:01:00+00:00", "attempt": 7}
    write(ledger, **later)
    assert not mirror_all(ledger, SWEEP, names, "")
    after = runs_of(uri_of(ledger))[1][cell]
    assert (after.info.start_time, after.info.end_time) == (before.info.start_time, before.info.end_time)
    assert after.data.tags == before.data.tags


def test_end_that_takes_long_says_what_it_waits_for(
    ledger: Ledger, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "MOMENT_S", 0.05)
    monkeypatch.setattr(mirroring, "SAY_EVERY_S", 0.05)
    go = threading.Event()

    def refuse(method: str, path: str, size: int) -> int | None:
        assert not path.endswith("log-batch") or go.wait(30)
        return None

    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    said: list[str] = []
    with proxy(shared_server, refuse) as before:
        running = Mirror.open(ledger, "slow end", names, before.uri)
        until(lambda: len(running.pending) == 2)
        assert running.close(0.4, said.append)
        assert said[0].startswith("waiting for the tracker: 2 cells and 0 files to write, at most 0 s more")
        go.set()
        assert not running.close(say=said.append)
