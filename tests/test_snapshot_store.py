"""Snapshots in an object store: published whole or not at all, read back checked, removed with what names them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3_server
from s3_server import Request, S3Server, denied, expired_after, lose_first_answers, s3
from test_ledger import TRAJECTORY

from massive_sft.core.errors import Corrupt, InvalidInput, LeaseLost
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.folder_cache import FolderCache, is_machine_full
from massive_sft.ledger.manifest import seal_folder, verify_folder
from massive_sft.ledger.snapshot_store import (
    NAME,
    StoredFolder,
    open_folder,
    remove_folder,
    stored_bytes,
    verify_stored,
)
from massive_sft.ledger.storage import Folder, Root
from massive_sft.ledger.store import Ledger
from massive_sft.running.outcome import has_snapshot, open_snapshot, remove_snapshot, snapshot_folder

__all__ = ["s3"]  # a fixture
WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger")


@pytest.fixture
def attempt(ledger: Ledger) -> Iterator[Attempt]:
    begun = ledger.begin_attempt(TRAJECTORY, "tests")
    assert begun is not None
    with begun:
        yield begun


def finished(folder: Path, weights: bytes = WEIGHTS) -> Path:
    """Make a finished snapshot, not sealed yet."""
    (folder / "below").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "below" / "empty").touch()
    return folder


def publish(attempt: Attempt, weights: bytes = WEIGHTS, epoch: int = 1) -> Path:
    """Publish a snapshot in the object store; return the ledger's folder of it."""
    source = finished(attempt.folder / "finished", weights)
    return attempt.publish_stored(f"snapshots/epoch-{epoch}", source, s3_server.place(), "config.json").folder


def objects() -> list[str]:
    return sorted(Bucket(s3_server.BUCKET).sizes())


def fetched(server: S3Server) -> int:
    """Return how often a file of weights was fetched."""
    return sum(one.method == "GET" and "model.safetensors" in one.path for one in server.asked)


def test_snapshot_lies_in_the_store_and_the_ledger_says_where(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    local = finished(attempt.folder / "local")
    hashes = seal_folder(local)
    folder = publish(attempt)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", NAME]
    assert len(objects()) == 4 and all(name.startswith("a/study/") for name in objects())
    assert stored_bytes(folder) == sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
    with open_snapshot(ledger, TRAJECTORY, 1) as found:
        assert found is not None
        assert found[1] == verify_stored(folder) == hashes == verify_folder(found[0])
        assert (found[0] / "model.safetensors").read_bytes() == WEIGHTS
    assert not (attempt.folder / "finished").exists()


def test_manifest_is_uploaded_last(s3: S3Server, attempt: Attempt) -> None:
    publish(attempt)
    puts = [one.path.rpartition("/")[2] for one in s3.asked if one.method == "PUT"]
    assert sorted(puts[:-1]) == ["config.json", "empty", "model.safetensors"] and puts[-1] == "manifest.json"


def test_copy_is_fetched_once_and_looked_at_each_time(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    publish(attempt)
    for _ in range(3):
        with open_snapshot(ledger, TRAJECTORY, 1) as found:
            assert found is not None
    assert fetched(s3) == 1
    (found[0] / "model.safetensors").write_bytes(b"a disk that flips bits")
    with open_snapshot(ledger, TRAJECTORY, 1) as found:
        assert found is not None and (found[0] / "model.safetensors").read_bytes() == WEIGHTS
    assert fetched(s3) == 2


def test_asking_for_a_snapshot_fetches_nothing(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    assert not has_snapshot(ledger, TRAJECTORY, 1)
    publish(attempt)
    assert has_snapshot(ledger, TRAJECTORY, 1)
    assert fetched(s3) == 0


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damaged_object_is_no_snapshot(s3: S3Server, ledger: Ledger, attempt: Attempt, damage: str) -> None:
    folder = publish(attempt)
    (name,) = (name for name in objects() if name.endswith("model.safetensors"))
    if damage == "missing":
        Bucket(s3_server.BUCKET).delete(name)
    else:
        Bucket(s3_server.BUCKET).put(name, WEIGHTS[::-1] if damage == "changed" else WEIGHTS[1:])
    assert has_snapshot(ledger, TRAJECTORY, 1) == (damage == "changed")
    with open_snapshot(ledger, TRAJECTORY, 1) as found:
        assert found is None
    assert "safetensors" in ledger.corrupt[folder]
    assert not list((FolderCache.of_this_machine().place).iterdir())


def test_store_that_cannot_be_asked_is_not_an_absent_snapshot(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    publish(attempt)
    s3.refuses = expired_after(0)
    for ask in (lambda: has_snapshot(ledger, TRAJECTORY, 1), open_snapshot(ledger, TRAJECTORY, 1).__enter__):
        with pytest.raises(PermissionError, match=r"The provided token has expired.*renew the credentials"):
            ask()
    assert not ledger.corrupt


# Faults on the way there


def test_lost_answers_cost_nothing(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    s3.loses = lose_first_answers
    publish(attempt)
    assert len(objects()) == 4
    with open_snapshot(ledger, TRAJECTORY, 1) as found:
        assert found is not None


def test_large_file_is_sent_in_parts_whose_answers_get_lost(
    s3: S3Server, ledger: Ledger, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = os.urandom(9 << 20)  # the client sends more than 8 MiB in parts
    s3.loses = lambda request: request.method == "POST" and request.before == 0 and "uploadId" in request.path
    publish(attempt, weights)
    with open_snapshot(ledger, TRAJECTORY, 1) as found:
        assert found is not None and (found[0] / "model.safetensors").read_bytes() == weights
    assert any("partNumber=2" in one.path for one in s3.asked)


@pytest.mark.parametrize("count", range(1, 9))
def test_credentials_that_expire_midway_publish_nothing_and_leave_nothing(
    s3: S3Server, ledger: Ledger, attempt: Attempt, count: int
) -> None:
    """Whatever was uploaded until then is named by the attempt, which removes it."""
    s3.refuses = expired_after(count)
    try:
        publish(attempt)
    except PermissionError as error:
        assert "canary" not in str(error) and "renew the credentials" in str(error)
    s3.refuses = lambda request: None
    folder = snapshot_folder(ledger, TRAJECTORY, 1)
    assert has_snapshot(ledger, TRAJECTORY, 1) == folder.exists()
    attempt.clean_up()
    assert folder.exists() == bool(objects())
    remove_snapshot(ledger, TRAJECTORY, 1)
    assert objects() == []
    assert not any(path.is_dir() for path in attempt.folder.iterdir())


def test_what_the_store_does_not_let_go_of_is_left_named(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    folder = publish(attempt)
    s3.refuses = denied("POST")  # which deletes several objects
    remove_snapshot(ledger, TRAJECTORY, 1)
    assert not folder.exists()
    (left,) = folder.parent.iterdir()
    assert left.name.startswith(".epoch-1.removed.") and StoredFolder.read(left) is not None
    s3.refuses = lambda request: None
    remove_snapshot(ledger, TRAJECTORY, 1)
    assert not list(folder.parent.iterdir()) and objects() == []


def test_snapshots_of_two_attempts_share_no_object(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    publish(attempt)
    before = objects()
    late = finished(attempt.folder / "late")
    assert not attempt.publish_stored("snapshots/epoch-1", late, s3_server.place(), "config.json").is_own
    assert len(objects()) == 8
    attempt.clean_up()
    assert objects() == before and has_snapshot(ledger, TRAJECTORY, 1)


def test_upload_that_lost_its_lease_leaves_nothing_though_what_names_it_is_gone(s3: S3Server, attempt: Attempt) -> None:
    """A lane whose run was killed uploads while ``gc`` clears away after that."""

    def take_over(request: Request) -> None:
        if request.method == "PUT" and "manifest.json" in request.path and attempt.claim.held():
            attempt.release()
            for pointer in attempt.folder.glob(f"*/{NAME}"):
                remove_folder(pointer.parent)

    s3.refuses = take_over
    with pytest.raises(LeaseLost):
        publish(attempt)
    assert objects() == []


def test_unreadable_pointer_is_no_snapshot(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    folder = publish(attempt)
    for text in (
        "{",
        "{}",
        '{"schema": 2}',
        '{"schema": 1, "at": "file:///etc", "files": {}}',
        '{"schema": 1, "at": 7}',
    ):
        (folder / NAME).write_text(text)
        with pytest.raises(Corrupt):
            StoredFolder.read(folder)
        with open_snapshot(ledger, TRAJECTORY, 1) as found:
            assert found is None


def test_no_secret_is_written(s3: S3Server, ledger: Ledger, attempt: Attempt) -> None:
    publish(attempt)
    written = [path.read_bytes() for path in ledger.root.rglob("*") if path.is_file()]
    assert written and not any(b"canary" in data or s3.address.encode() in data for data in written)


# The cache


def fill(text: str, times: list[str]) -> object:
    def fetch(folder: Path) -> None:
        times.append(text)
        (folder / "file").write_text(text * 10)

    return fetch


def test_cache_removes_what_was_longest_unused(tmp_path: Path) -> None:
    cache, times = FolderCache(tmp_path, 25), list[str]()
    for at, key in enumerate("abacab"):
        with cache.hold(key, 10, fill(key, times)) as entry:  # type: ignore[arg-type]
            os.utime(entry, (at, at))
    assert "".join(times) == "abcb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_cache_keeps_what_is_in_use_whatever_its_limit(tmp_path: Path) -> None:
    cache, times = FolderCache(tmp_path, 1), list[str]()
    with (
        cache.hold("a", 10, fill("a", times)) as one,  # type: ignore[arg-type]
        cache.hold("b", 10, fill("b", times)) as other,  # type: ignore[arg-type]
    ):
        cache.remove("a")
        assert (one / "file").exists() and (other / "file").exists()
    with cache.hold("c", 10, fill("c", times)):  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_cache_fetches_once_for_all_who_wait(tmp_path: Path) -> None:
    cache, times, go = FolderCache(tmp_path, 100), list[str](), threading.Event()

    def fetch(folder: Path) -> None:
        go.wait(10)
        fill("a", times)(folder)  # type: ignore[operator]

    def use(number: int) -> str:
        with cache.hold("a", 10, fetch) as entry:
            return (entry / "file").read_text()

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(use, number) for number in range(6)]
        go.set()
        assert {one.result() for one in asked} == {"a" * 10}
    assert times == ["a"] and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_cache_of_many_users_loses_and_mixes_nothing(tmp_path: Path) -> None:
    """Each use is of a whole copy of what was asked, while others remove what they can."""
    cache, times = FolderCache(tmp_path, 15), list[str]()

    def use(number: int) -> bool:
        key = "abc"[number % 3]
        with cache.hold(key, 10, fill(key, times)) as entry:  # type: ignore[arg-type]
            return (entry / "file").read_text() == key * 10

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(use, range(600)))


def test_cache_keeps_nothing_of_a_fetch_that_fails_or_was_killed(tmp_path: Path) -> None:
    cache, times = FolderCache(tmp_path, 100), list[str]()
    (tmp_path / ".a.partial" / "half").mkdir(parents=True)

    def fail(folder: Path) -> None:
        (folder / "file").touch()
        raise Corrupt("is damaged")

    with pytest.raises(Corrupt), cache.hold("a", 10, fail):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.partial" / "half").mkdir(parents=True)
    with cache.hold("a", 10, fill("a", times)) as entry:  # type: ignore[arg-type]
        assert [path.name for path in entry.iterdir()] == ["file"]


def test_cache_of_this_machine_is_said_by_the_environment(tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": "/somewhere"}
    assert FolderCache.of_this_machine(home) == FolderCache(Path("/somewhere/massive-sft/snapshots"), 2e11)
    own = {"MASSIVE_SFT_CACHE": "/scratch", "MASSIVE_SFT_CACHE_SIZE": "2TB"}
    assert FolderCache.of_this_machine(home | own) == FolderCache(Path("/scratch/snapshots"), 2e12)
    with pytest.raises(InvalidInput, match="MASSIVE_SFT_CACHE_SIZE: must be a size"):
        FolderCache.of_this_machine({"MASSIVE_SFT_CACHE_SIZE": "much"})


def test_local_snapshot_needs_neither_store_nor_cache(ledger: Ledger, attempt: Attempt) -> None:
    folder = attempt.publish("snapshots/epoch-1", finished(attempt.folder / "own")).folder
    with open_folder(folder) as (place, hashes):
        assert place == folder and hashes["model.safetensors"] == hash_file(folder / "model.safetensors")
    assert has_snapshot(ledger, TRAJECTORY, 1)


@pytest.mark.parametrize(
    ("root", "number", "place", "is_full"),
    [
        (BucketRoot("b", "x"), errno.ENOSPC, None, True),
        (BucketRoot("b", "x"), errno.ENOSPC, "/tmp/a", True),
        (BucketRoot("b", "x"), errno.ENOSPC, "s3://b/x/records", False),  # the store's own, for all
        (BucketRoot("b", "x"), errno.EACCES, "/tmp/a", False),
        (Folder(Path("/shared")), errno.ENOSPC, "/shared/cells", False),
        (Folder(Path("/shared")), errno.ENOSPC, None, False),
        (Folder(Path("/shared")), errno.EDQUOT, "/cache/of/this/machine/snapshots/1", True),
    ],
)
def test_full_disk_of_a_machine_is_told_from_one_that_all_share(
    root: Root, number: int, place: str | None, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASSIVE_SFT_CACHE", "/cache/of/this/machine")
    assert is_machine_full(OSError(number, "no", place), root) is is_full
    assert not is_machine_full(ValueError("no"), root)
