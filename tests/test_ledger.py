"""The ledger reads true whatever happens to the processes that write it, and to the files."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from massive_sft.core import fingerprint
from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt, InvalidInput, LeaseLost, LedgerError, Unsupported
from massive_sft.ledger import index, records, store
from massive_sft.ledger.index import Index
from massive_sft.ledger.lease import Claim, LeaseState
from massive_sft.ledger.loss_curve import StepDone, read_steps, to_line
from massive_sft.ledger.manifest import verify_folder
from massive_sft.ledger.record import Record, Revision, Status, dump_record, load_record
from massive_sft.ledger.run_requirements import publish_requirements
from massive_sft.ledger.runs import register_run
from massive_sft.ledger.store import Ledger
from massive_sft.running.outcome import remove_snapshot, snapshot_folder

TRAJECTORY = "00000000000000aa"
CELL = "00000000000000bb"
NOW = "2026-01-31T12:00:00+00:00"


def cell_id(number: int) -> str:
    return f"{number:016x}"


def score(value: float | None) -> dict:
    return {"value": value, "stderr": None, "interval": None, "method": None, "n": 4, "higher_is_better": True}


def record_files(root: Path, cell: str) -> list[Path]:
    """Return the files of a cell's records, the newest last, by a look at the disk."""
    return sorted((root / "records").glob(f"*/{cell}.record-*.json"))


def revision_of(name: str) -> Revision:
    """Return the revision of such a file by its name."""
    revision = Revision.of(name.partition(".")[2])
    assert revision is not None
    return revision


SCORES = {
    "benchmark": "mmlu-0shot",
    "asked": "mmlu@0 abc",
    "shots": 0,
    "tasks": {"mmlu": {"acc,none": score(0.25), "acc_norm,none": score(None)}},
    "groups": {},
}


def make_record(cell: str = CELL, **changes) -> Record:
    content = {
        "cell": cell,
        "trajectory": TRAJECTORY,
        "coordinates": {"model": "tiny", "data": "alpaca", "epoch": 3, "lr": 1e-5, "size": None},
        "status": Status.COMPLETE,
        "attempt": 1,
        "scores": {"p1": SCORES},
        "measures": {"perplexity": {"response": 3.5}},
        "counts": {"used": 10, "dropped": 0},
        "training": {"final_loss": 0.5, "steps": 3},
        "provenance": {"host": "h"},
        "created": NOW,
        "finished": NOW,
    }
    return Record(**(content | changes))


@pytest.fixture
def ledger(tmp_path):
    return Ledger.open(tmp_path / "root")


# The whole life of a cell, as the trainer and the scorer write it; run by crash() and by the tests themselves.


def write_cell_through(root: Path) -> str:
    """Take up the cell where it was left; return ``wrote``, or ``nothing to do``."""
    ledger = Ledger.open(root)
    if ledger.statuses({CELL: TRAJECTORY})[CELL] is Status.COMPLETE:
        return "nothing to do"
    with ledger.begin_attempt(TRAJECTORY, "test") as attempt:
        ledger.write_spec(TRAJECTORY, {"seed": 0})
        snapshot = attempt.folder / "snapshots" / "epoch-3"
        (snapshot / "weights").mkdir(parents=True)
        (snapshot / "weights" / "model.safetensors").write_bytes(b"w" * 1000)
        (snapshot / "config.json").write_text("{}")
        published = attempt.publish("snapshots/epoch-3")
        ledger.write_cell(CELL, {"seed": 0, "epoch": 3})
        scores = ledger.cell_dir(CELL) / "scores" / "p1.json"
        scores.parent.mkdir(exist_ok=True)
        scores.write_text("{}")
        ledger.write_record(make_record(attempt=attempt.number, files=published.files), attempt.claim)
        attempt.clean_up()
    return "wrote"


def crash(folder: Path) -> None:
    """Run ``write_cell_through`` in a child that is killed before its n-th change of the disk, for n = 1, 2, ...

    Each under ``folder/<n>``; ends after the first child that lives, and prints how many were killed.
    """
    changes = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod"}
    for number in range(1, 1000):
        child = os.fork()
        if child == 0:
            left = [number]

            def step(left=left):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            def audit(event, arguments):
                if event in changes and (
                    event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                ):
                    step()

            def stepping(call):
                def stepped(*arguments):
                    step()
                    return call(*arguments)

                return stepped

            sys.addaudithook(audit)
            for name in ("write", "pwrite", "fsync"):  # these raise no audit event
                setattr(os, name, stepping(getattr(os, name)))
            write_cell_through(folder / str(number))
            os._exit(0)
        _, state = os.waitpid(child, 0)
        if os.WIFEXITED(state):
            outcome = str(number - 1) if os.WEXITSTATUS(state) == 0 else "the last child failed"
            sys.stdout.write(outcome)
            return


def stop_before_publishing(root: Path, where: str) -> None:
    """Hold the trajectory, stop before publishing or inside the system call ``where``, publish after SIGCONT."""
    ledger = Ledger.open(root)
    attempt = ledger.begin_attempt(TRAJECTORY, "sleeper")
    snapshot = attempt.folder / "snapshots" / "epoch-3"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"sleeper")

    def stopping(call):
        def stopped(source, target):
            if re.fullmatch(r"epoch-3|[0-9a-f]+\.record-[-0-9]+\.json", Path(target).name):
                os.kill(os.getpid(), signal.SIGSTOP)
            return call(source, target)

        return stopped

    if where == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        setattr(os, where, stopping(getattr(os, where)))
    for publish in (
        lambda: attempt.publish("snapshots/epoch-3"),
        lambda: ledger.write_record(make_record(training={"who": "sleeper"}), attempt.claim),
    ):
        try:
            publish()
            sys.stdout.write("published ")
        except LeaseLost:
            sys.stdout.write("lost ")


def run_self(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], **options)


# Crashes and stops


@pytest.fixture
def quick_folder():
    """A folder in memory where there is one: thousands of flushes to a disk would take a minute."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_ledger_killed_before_any_write_reads_true_and_is_taken_up(quick_folder):
    with run_self("crash", quick_folder) as child:
        kills = int(child.communicate()[0])
    assert kills > 40
    seen = set()
    for number in range(1, kills + 1):
        root = quick_folder / str(number)
        ledger = Ledger.open(root)
        record, status = ledger.read_record(CELL), ledger.statuses({CELL: TRAJECTORY})[CELL]
        assert status is (Status.COMPLETE if record else Status.WAITING)
        assert not ledger.corrupt
        snapshot = ledger.trajectory_dir(TRAJECTORY) / "snapshots" / "epoch-3"
        if record:
            for name, sha256 in record.files.items():
                assert fingerprint.hash_file(root / name) == sha256
        assert write_cell_through(root) == ("nothing to do" if record else "wrote")
        assert write_cell_through(root) == "nothing to do"
        ledger = Ledger.open(root)
        assert len(list(ledger.records())) == len(record_files(root, CELL)) == 1
        assert (snapshot / "weights" / "model.safetensors").stat().st_size == 1000
        seen.add(status)
    assert seen == {Status.WAITING, Status.COMPLETE}


@pytest.mark.parametrize("where", ["before", "rename", "link"])
def test_ledger_holder_stopped_past_its_lease_publishes_nothing(tmp_path, where):
    # "rename" and "link" stop right after the check of the lease and before what it allows: the hardest moments.
    with run_self("stop", tmp_path, where) as child:
        try:
            assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
            finish_in_its_place(tmp_path)
            child.send_signal(signal.SIGCONT)
            outcome = child.communicate()[0].split()
        finally:
            child.kill()  # a stopped child would be waited for for ever
    assert outcome == {"before": ["lost", "lost"], "rename": ["lost", "lost"], "link": ["published", "lost"]}[where]
    ledger = Ledger.open(tmp_path)
    assert [record.training for record in ledger.records()] == [{"who": "other"}]
    assert len(record_files(tmp_path, CELL)) == 1
    weights = ledger.trajectory_dir(TRAJECTORY) / "snapshots" / "epoch-3" / "model.safetensors"
    assert weights.read_bytes() == (b"sleeper" if where == "link" else b"other")


def finish_in_its_place(root: Path) -> None:
    """Take the trajectory over from a stopped process and finish it."""
    ledger = Ledger.open(root)
    now = [0.0]
    ledger._watch._clock = lambda: now[0]
    assert ledger.begin_attempt(TRAJECTORY, "other") is None
    assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.WAITING}  # it took no step
    now[0] = 60.0
    with ledger.begin_attempt(TRAJECTORY, "other") as attempt:
        assert attempt.number == 2
        snapshot = attempt.folder / "snapshots" / "epoch-3"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"other")
        attempt.publish("snapshots/epoch-3")
        ledger.write_record(make_record(attempt=2, training={"who": "other"}), attempt.claim)


# Records


def test_record_written_reads_back_equal(ledger):
    record = make_record()
    ledger.write_record(record)
    assert ledger.read_record(CELL) == record
    assert list(ledger.records()) == [record]


def test_record_absent_is_none(ledger):
    assert ledger.read_record(CELL) is None


def test_record_newer_revision_supersedes_and_keeps_the_older(ledger):
    ledger.write_record(make_record(status=Status.FAILED, error="out of memory"))
    ledger.write_record(make_record(attempt=2))
    assert ledger.read_record(CELL).attempt == 2
    older = record_files(ledger.root, CELL)[0]
    assert load_record(older.read_bytes(), str(older)).error == "out of memory"
    assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.COMPLETE}


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"p": SCORES | {"tasks": {"t": {"acc": score(float("nan"))}}}}},
        {"measures": {"perplexity": {"response": float("inf")}}},
        {"training": {"final_loss": float("nan")}},
        {"status": Status.RUNNING},
        {"status": Status.WAITING},
        {"status": Status.PARTIAL},
        {"missing": {"mmlu": "no data"}},
        {"status": Status.FAILED},
        {"error": "but COMPLETE"},
        {"created": "2026-01-31T12:00:00"},
        {"finished": "2026-01-31T12:00:00+02:00"},
        {"files": {"a": "short"}},
        {"attempt": 0},
        {"unknown": 1},
    ],
)
def test_record_unsound_content_is_refused(changes):
    with pytest.raises(ValidationError):
        make_record(**changes)


def test_record_error_with_secret_is_written_without(ledger):
    ledger.write_record(make_record(status=Status.FAILED, error="401 for https://me:CANARY@hub/x"))
    assert "CANARY" not in record_path(ledger).read_text()
    assert ledger.read_record(CELL).error == "401 for https://***@hub/x"


def test_record_of_any_maker_hides_secrets_in_its_reasons(ledger):
    made = make_record(status=Status.PARTIAL, missing={"mmlu": "401 for https://me:CANARY@hub/x"})
    assert made.missing == {"mmlu": "401 for https://***@hub/x"}
    ledger.write_record(made)
    assert "CANARY" not in record_path(ledger).read_text()


def record_path(ledger: Ledger, cell: str = CELL) -> Path:
    return record_files(ledger.root, cell)[-1]


def damage_bit(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


@pytest.mark.parametrize("damage", [damage_bit, lambda data: data[:-20], lambda data: b"", lambda data: data + b"x"])
def test_record_damaged_is_reported_counts_as_absent_and_is_redone(ledger, damage):
    for number in range(3):
        ledger.write_record(make_record(cell_id(number)))
    path = record_path(ledger, cell_id(1))
    path.write_bytes(damage(path.read_bytes()))
    ledger = Ledger.open(ledger.root)
    asked = dict.fromkeys(map(cell_id, range(3)), TRAJECTORY)
    assert list(ledger.statuses(asked).values()) == [Status.COMPLETE, Status.WAITING, Status.COMPLETE]
    assert [record.cell for record in ledger.records()] == [cell_id(0), cell_id(2)]
    assert list(ledger.corrupt) == [path]
    assert "does not match its checksum" in ledger.corrupt[path]
    ledger.write_record(make_record(cell_id(1), attempt=2))
    assert ledger.read_record(cell_id(1)).attempt == 2
    assert set(ledger.statuses(asked).values()) == {Status.COMPLETE}


def test_record_damaged_brings_none_back_that_it_superseded(ledger):
    ledger.write_record(make_record())
    ledger.write_record(make_record(status=Status.FAILED, error="invalidated: wrong data")).write_bytes(b"")
    for _ in range(2):
        assert ledger.read_record(CELL) is None
        assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.WAITING}
        assert not list(ledger.records())
        ledger = Ledger.open(ledger.root)
    ledger.write_record(make_record(attempt=3))
    assert ledger.read_record(CELL).attempt == 3


def test_record_every_truncation_is_detected(ledger):
    data = ledger.write_record(make_record()).read_bytes()
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            unseal(data[:length], "x")


def test_record_of_another_cell_counts_as_absent(ledger):
    path = ledger.write_record(make_record())
    other = ledger.record_path(cell_id(7), Revision(0, 1))
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(path.read_bytes())
    assert ledger.read_record(cell_id(7)) is None
    assert "another cell" in str(ledger.corrupt)


def test_record_of_newer_schema_is_refused_and_not_redone(ledger):
    path = ledger.write_record(make_record())
    content = json.loads(path.read_bytes())["content"] | {"schema": 2, "new": True}
    path.write_bytes(seal(content))
    with pytest.raises(Unsupported, match="has schema 2"):
        ledger.read_record(CELL)


def test_record_file_is_one_line_of_json_readable_by_all(ledger):
    path = ledger.write_record(make_record())
    assert json.loads(path.read_bytes())["content"]["scores"] == {"p1": SCORES}
    assert path.stat().st_mode & 0o777 == 0o644


def test_record_of_a_superseded_owner_sorts_below_and_is_refused_once_it_can_be_seen(ledger, monkeypatch):
    first = ledger.lease_cell(CELL, "first")
    monkeypatch.setattr(LeaseState, "owner_is_gone", lambda self: True)
    second = ledger.lease_cell(CELL, "second")
    monkeypatch.setattr(Claim, "verify", lambda self: None)  # a listing that is a minute old
    late = ledger.write_record(make_record(status=Status.FAILED, error="late"), first.claim)
    ledger.write_record(make_record(attempt=2), second.claim)
    assert ledger.read_record(CELL).attempt == 2
    with pytest.raises(LeaseLost, match="was written since"):
        ledger.write_record(make_record(status=Status.FAILED, error="later"), first.claim)
    assert ledger.read_record(CELL).attempt == 2
    assert late.exists()
    for lease in (first, second):
        lease.release()


def test_record_after_leases_were_removed_by_hand_is_the_newest(ledger):
    for attempt in (1, 2, 3):
        with ledger.lease_cell(CELL, "a") as lease:
            assert lease.claim.number == attempt
            ledger.write_record(make_record(attempt=attempt), lease.claim)
        if attempt == 2:
            shutil.rmtree(ledger.cell_dir(CELL) / "lease")
    assert ledger.read_record(CELL).attempt == 3


# Cells, attempts, snapshots


def test_cell_written_twice_is_kept_and_other_content_is_refused(ledger):
    ledger.write_cell(CELL, {"seed": 0})
    ledger.write_cell(CELL, {"seed": 0})
    with pytest.raises(LedgerError, match="other content"):
        ledger.write_cell(CELL, {"seed": 1})


def test_cell_written_by_another_schema_is_the_same_cell(ledger, monkeypatch):
    ledger.write_cell(CELL, {"lr": 1e-5, "betas": (0.9, 0.999)})
    monkeypatch.setattr(store, "SCHEMA", 2)
    ledger.write_cell(CELL, {"betas": [0.9, 0.999], "lr": 1e-5})
    with pytest.raises(LedgerError, match="other content"):
        ledger.write_cell(CELL, {"lr": 1e-4, "betas": [0.9, 0.999]})


def test_cell_with_path_for_an_id_is_refused(ledger):
    with pytest.raises(ValueError, match="no id"):
        ledger.cell_dir("../../etc")


def test_statuses_without_record_follow_the_leases(ledger):
    cells = {CELL: TRAJECTORY, cell_id(1): None}
    assert set(ledger.statuses(cells).values()) == {Status.WAITING}
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt, ledger.lease_cell(cell_id(1), "b"):
        assert ledger.statuses(cells) == {CELL: Status.WAITING, cell_id(1): Status.RUNNING}  # no worker has it yet
        attempt.lease.beat()
        assert ledger.statuses(cells)[CELL] is Status.WAITING
        attempt.take_up()
        assert set(ledger.statuses(cells).values()) == {Status.RUNNING}
        assert ledger.begin_attempt(TRAJECTORY, "c") is None
    assert set(ledger.statuses(cells).values()) == {Status.WAITING}


def test_attempt_after_leases_were_removed_by_hand_gets_a_fresh_number(ledger):
    for _ in range(2):
        ledger.begin_attempt(TRAJECTORY, "a").release()
    lease = ledger.trajectory_dir(TRAJECTORY) / "lease"
    for path in lease.iterdir():
        path.unlink()
    with ledger.begin_attempt(TRAJECTORY, "b") as attempt:
        assert attempt.number == 3


def test_attempt_whose_folder_cannot_be_made_holds_nothing(ledger):
    """Else the process that tried waits for itself, once there is room again."""
    attempts = ledger.trajectory_dir(TRAJECTORY) / "attempts"
    attempts.parent.mkdir(parents=True)
    attempts.write_text("stands for a disk that refuses")
    with pytest.raises(OSError, match="attempts"):
        ledger.begin_attempt(TRAJECTORY, "a")
    attempts.unlink()
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        assert attempt.folder.is_dir()


def fill(attempt, content: bytes = b"x") -> Path:
    folder = attempt.folder / "snapshots" / "epoch-3"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(content)
    return folder


def test_attempt_sent_to_another_process_publishes_there(ledger):
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        fill(attempt)
        published = pickle.loads(pickle.dumps(attempt)).publish("snapshots/epoch-3")
    assert published.is_own
    place = f"trajectories/{TRAJECTORY}/snapshots/epoch-3"
    assert sorted(published.files) == [f"{place}/manifest.json", f"{place}/weights"]


def test_file_that_was_hashed_as_it_was_written_is_not_read_again(ledger):
    """Its manifest states what it was hashed to then, so that what changed since is no snapshot."""
    told = hashlib.sha256(b"as it was written").hexdigest()
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        fill(attempt, b"as it is now")
        published = attempt.publish("snapshots/epoch-3", known={"weights": told})
    assert published.files[f"trajectories/{TRAJECTORY}/snapshots/epoch-3/weights"] == told
    with pytest.raises(Corrupt, match="weights"):
        verify_folder(published.folder)


def test_publish_over_sound_snapshot_keeps_the_first(ledger):
    for content, ours in [(b"first", True), (b"second", False)]:
        with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
            fill(attempt, content)
            published = attempt.publish("snapshots/epoch-3")
            assert published.is_own is ours
    assert (published.folder / "weights").read_bytes() == b"first"
    assert published.files[f"trajectories/{TRAJECTORY}/snapshots/epoch-3/weights"] == fingerprint.hash_file(
        published.folder / "weights"
    )


@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_publish_over_damaged_snapshot_sets_it_aside(ledger, name):
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        fill(attempt)
        published = attempt.publish("snapshots/epoch-3")
    (published.folder / name).write_bytes(b"y")
    with ledger.begin_attempt(TRAJECTORY, "b") as attempt:
        fill(attempt, b"again")
        published = attempt.publish("snapshots/epoch-3")
        assert published.is_own
        assert [path.name[:6] for path in attempt.folder.iterdir() if path.name != "snapshots"] == ["aside-"]
    assert (published.folder / "weights").read_bytes() == b"again"


class Late(Claim):
    """Learns at its second look that it lost the lease, as by an old listing."""

    looks: ClassVar[list[int]] = []

    def verify(self):
        self.looks.append(1)
        if len(self.looks) == 2:
            raise LeaseLost("another has it")


def test_set_aside_by_one_that_lost_the_lease_leaves_what_is_published(ledger):
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        fill(attempt)
        published = attempt.publish("snapshots/epoch-3")
    with pytest.raises(LeaseLost):
        attempt.set_aside("snapshots/epoch-3")
    late = Late(attempt.claim.lease, attempt.claim.number, attempt.claim.token)
    with pytest.raises(LeaseLost, match="another"):
        replace(attempt, claim=late).set_aside("snapshots/epoch-3")
    assert (published.folder / "weights").read_bytes() == b"x"


def test_publish_released_or_empty_or_linked_is_refused(ledger):
    with ledger.begin_attempt(TRAJECTORY, "a") as attempt:
        with pytest.raises(FileNotFoundError):
            attempt.publish("snapshots/epoch-3")
        (attempt.folder / "empty").mkdir()
        with pytest.raises(LedgerError, match="empty"):
            attempt.publish("empty")
        with pytest.raises(ValueError, match="below"):
            attempt.publish("../1")
        (fill(attempt) / "link").symlink_to("weights")
        with pytest.raises(LedgerError, match="plain file"):
            attempt.publish("snapshots/epoch-3")
        (attempt.folder / "snapshots" / "epoch-3" / "link").unlink()
    with pytest.raises(LeaseLost):
        attempt.publish("snapshots/epoch-3")
    with pytest.raises(LeaseLost):
        ledger.write_record(make_record(), attempt.claim)
    assert ledger.read_record(CELL) is None


# The index


def index_path(ledger: Ledger) -> Path:
    (path,) = (ledger.root / "index").iterdir()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: data[:-7],
        lambda data: data.replace(b"FAILED", b"PRUNED"),
        lambda data: data + b"\n",
        lambda data: data.splitlines(keepends=True)[0],
        lambda data: b"\xff\xfe",
        lambda data: b"",
        lambda data: seal({"cell": CELL, "from": "a newer version"}),
    ],
)
def test_index_missing_torn_or_wrong_changes_no_answer(ledger, damage):
    ledger._records._index = Index(ledger.storage.at("index"), count(0, 2).__next__)  # each write at once
    ledger.write_record(make_record(cell_id(1)))
    ledger.write_record(make_record(cell_id(2), status=Status.FAILED, error="x"))
    path = index_path(ledger)
    assert len(path.read_bytes().splitlines()) == 2
    damaged = damage(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    asked = dict.fromkeys(map(cell_id, range(1, 4)), TRAJECTORY)
    ledger = Ledger.open(ledger.root)
    ledger.write_record(make_record(cell_id(3)))
    for _ in range(2):
        assert [*ledger.statuses(asked).values()] == [Status.COMPLETE, Status.FAILED, Status.COMPLETE]


def test_index_torn_line_costs_the_opening_of_one_record(ledger, monkeypatch):
    for number in range(5):
        ledger.write_record(make_record(cell_id(number)))
    Ledger.open(ledger.root).entries()
    for path in (ledger.root / "index").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line[:40] + b"\n" if cell_id(2).encode() in line else line for line in lines))
    opened: list[str] = []
    load = records.load_record
    monkeypatch.setattr(records, "load_record", lambda data, place: opened.append(place) or load(data, place))
    assert len(Ledger.open(ledger.root).entries()) == 5
    assert opened == [str(record_path(ledger, cell_id(2)))]


def test_index_of_many_writers_is_merged_and_loses_nothing(ledger, monkeypatch):
    monkeypatch.setattr(index, "MERGE", 4)
    for number in range(6):
        Ledger.open(ledger.root).write_record(make_record(cell_id(number // 2), attempt=number + 1))
    assert len(list((ledger.root / "index").iterdir())) == 6
    assert {cell: entry.record[-9:-5] for cell, entry in ledger.entries().items()} == {
        cell_id(n): "0002" for n in range(3)
    }
    assert len(index_path(ledger).read_bytes().splitlines()) == 3
    monkeypatch.setattr(records, "load_record", None)
    assert len(Ledger.open(ledger.root).entries()) == 3


def test_index_of_removed_or_copied_records_is_not_believed(ledger):
    path = ledger.write_record(make_record())
    data = path.read_bytes()
    path.unlink()
    assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.WAITING}
    path.write_bytes(data)
    assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.COMPLETE}


def test_index_behind_a_newer_record_is_not_believed(ledger):
    ledger.write_record(make_record(status=Status.FAILED, error="x"))
    before = index_path(ledger).read_bytes()
    ledger.write_record(make_record(attempt=2))
    index_path(ledger).write_bytes(before)
    assert Ledger.open(ledger.root).statuses({CELL: TRAJECTORY}) == {CELL: Status.COMPLETE}


def test_index_entry_names_what_the_record_answers(ledger):
    ledger.write_record(make_record())
    entry = ledger.entries()[CELL]
    assert (entry.answers, entry.trajectory) == (("mmlu@0 abc", "perplexity"), TRAJECTORY)


def test_ledger_of_thousand_cells_answers_in_time(ledger):
    for number in range(1000):
        path = ledger.record_path(cell_id(number), Revision(1, 1))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dump_record(make_record(cell_id(number))))
    began = time.perf_counter()
    fresh = Ledger.open(ledger.root)
    assert set(fresh.statuses(dict.fromkeys(map(cell_id, range(1000)), TRAJECTORY)).values()) == {Status.COMPLETE}
    assert len(list(fresh.records())) == 1000
    assert time.perf_counter() - began < 2.0  # seconds; 0.1 on an idle machine


# Roots


@pytest.mark.parametrize(
    "root", ["s3://bucket/x", "gs://bucket", "abfss://c@host/x", "file:///tmp/x", Path("s3://b/x")]
)
def test_root_on_object_store_is_refused(root):
    with pytest.raises(Unsupported, match="must be a folder of a local disk, NFS or Lustre"):
        Ledger.open(root)


def test_root_of_newer_schema_is_refused_and_untouched(tmp_path):
    (tmp_path / "ledger.json").write_text('{"schema": 4}')
    with pytest.raises(Unsupported, match="schema 4, this version reads up to 3"):
        Ledger.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "1"}'])
def test_root_with_unsound_head_is_refused(tmp_path, content):
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(Corrupt, match=r"ledger\.json"):
        Ledger.open(tmp_path)


def test_root_without_ledger_is_refused_for_reading(tmp_path):
    with pytest.raises(InvalidInput, match="is no ledger"):
        Ledger.open(tmp_path, create=False)
    assert not list(tmp_path.iterdir())


def test_root_below_a_file_is_refused_naming_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="can be written") as caught:
        Ledger.open(tmp_path / "file" / "root")
    assert str(tmp_path / "file" / "root") in str(caught.value)


@pytest.fixture
def unprivileged():
    """Run as a user whom permissions bind; root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def read_only_root():
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(folder)
        ledger.write_record(make_record())
        ledger.write_cell(CELL, {"seed": 0})
        os.remove(index_path(ledger))
        places = [Path(folder), *(path for path in Path(folder).rglob("*") if path.is_dir())]
        (Path(folder) / "ledger.json").chmod(0o444)
        for place in places:
            place.chmod(0o555)
        yield Path(folder)
        for place in places:
            place.chmod(0o755)


def test_root_read_only_is_refused_for_writing_and_answers_readers(read_only_root, unprivileged):
    with pytest.raises(InvalidInput, match="can be written") as caught:
        Ledger.open(read_only_root)
    assert str(read_only_root) in str(caught.value)
    ledger = Ledger.open(read_only_root, create=False)
    assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.COMPLETE}


def as_user(user: int, work) -> None:
    """Do something as another user of the same group, who lets the group write."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(user)
            os.umask(0o002)
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_root_of_a_group_is_written_by_two_users():
    def work() -> None:
        ledger = Ledger.open(root)
        with ledger.lease_cell(CELL, "me") as lease:
            ledger.write_cell(CELL, {"seed": 0})
            attempt = 1 + (ledger.read_record(CELL).attempt if ledger.read_record(CELL) else 0)
            ledger.write_record(make_record(attempt=attempt), lease.claim)
        with register_run(ledger.sweeps, "small", "me:1") as run:
            publish_requirements(run, {})
        with ledger.begin_attempt(TRAJECTORY, "me") as attempt:
            fill(attempt)
            attempt.publish("snapshots/epoch-3")
            remove_snapshot(ledger, TRAJECTORY, 3)
            assert not list((attempt.home / "snapshots").iterdir())
            attempt.clean_up()
        assert ledger.statuses({CELL: TRAJECTORY}) == {CELL: Status.COMPLETE}
        assert {path.stat().st_mode & 0o060 for path in root.rglob("*")} == {0o060}

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chown(root, 0, 12345)
        root.chmod(0o2775)
        for user in (20001, 20002, 20001):
            as_user(user, work)
        ledger = Ledger.open(root)
        assert ledger.read_record(CELL).attempt == 3
        assert len({path.stat().st_uid for path in (root / "index").iterdir()}) == 2


def test_ledger_imports_nothing_heavy():
    code = "import sys, massive_sft.ledger.store; print(*{'torch', 'ray', 'numpy', 'mlflow', 'lm_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    {"crash": crash, "stop": stop_before_publishing}[what](Path(where), *more)


def test_snapshot_removed_by_several_processes_at_once_is_gone_and_none_of_them_fails(ledger):
    folder = snapshot_folder(ledger, TRAJECTORY, 1)
    for _ in range(20):
        folder.mkdir(parents=True)
        for number in range(50):
            (folder / f"model-{number}.safetensors").touch()
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(remove_snapshot, ledger, TRAJECTORY, 1) for _ in range(4)]:
                done.result()
        assert not list(folder.parent.iterdir())


def test_user_without_a_home_has_hashes_that_are_not_remembered(tmp_path, monkeypatch):
    def unknown(_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    (tmp_path / "file").write_text("text")
    hashes = fingerprint.FileHashes()
    assert hashes.of(tmp_path / "file") == fingerprint.hash_file(tmp_path / "file")
    hashes.save()


def aged(path, seconds=10):
    """Return a time at which a file's last change is some seconds old."""
    return path.stat().st_ctime_ns + seconds * 10**9


def test_file_replaced_by_one_of_its_size_and_time_is_hashed_again(tmp_path, monkeypatch):
    data, memory = tmp_path / "data", tmp_path / "memory"
    data.write_text("blue")
    monkeypatch.setattr(fingerprint.time, "time_ns", lambda: aged(data))
    hashes = fingerprint.FileHashes(memory)
    blue, before = hashes.of(data), data.stat()
    hashes.save()
    in_place = data.open("r+")
    in_place.write("grey")
    in_place.close()
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    grey = fingerprint.FileHashes(memory).of(data)
    assert grey == fingerprint.hash_file(data) != blue
    other = tmp_path / "other"
    other.write_text("gold")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(data)
    assert fingerprint.FileHashes(memory).of(data) == fingerprint.hash_file(data) not in (blue, grey)


def test_hash_is_remembered_of_a_file_that_did_not_change_and_not_of_one_that_just_did(tmp_path, monkeypatch):
    data, memory, read = tmp_path / "data", tmp_path / "memory", []
    data.write_text("blue")
    monkeypatch.setattr(fingerprint, "hash_file", lambda path: read.append(path) or "0" * 64)
    for now, reads in ((aged(data, 1), 1), (aged(data), 2), (aged(data), 2)):
        monkeypatch.setattr(fingerprint.time, "time_ns", lambda now=now: now)
        hashes = fingerprint.FileHashes(memory)
        assert hashes.of(data) == "0" * 64
        hashes.save()
        assert len(read) == reads


def test_loss_curve_ends_where_its_writer_was_killed_and_refuses_what_is_no_step(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    step = StepDone(1, 1, 2.0, 1e-5, math.inf, 9, 3, 0.5)
    path.write_text(to_line(step) + to_line(step)[:-9])
    assert list(read_steps(path)) == [step]
    for line in ("{\n", "[1]\n", '{"step": 1}\n', to_line(step).replace("inf", "x")):
        path.write_text(to_line(step) + line)
        with pytest.raises(ValueError, match=r"losses.jsonl:2: is no optimizer step"):
            list(read_steps(path))
