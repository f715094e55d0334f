"""What the ledger rests on: a storage keeps its contract, also where the file system below misbehaves."""

from __future__ import annotations

import errno
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3_server
from faulty_files import FaultyOs
from nfs_mounts import mounts
from s3_server import BUCKET, Request, S3Server, lose_first_answers, s3

from massive_sft.core import files
from massive_sft.ledger import lease as lease_module
from massive_sft.ledger import storage as storage_module
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.lease import Lease, LeaseWatch, read_lease
from massive_sft.ledger.manifest import seal_folder
from massive_sft.ledger.runs import find_possible_runs, register_run
from massive_sft.ledger.storage import Folder, Storage

__all__ = ["mounts", "s3"]  # fixtures


@pytest.fixture(params=["folder", "faulty folder", "NFS", "S3", "S3 without answers"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Every implementation; the folder also on a file system that loses each answer and takes a byte at a time, and on
    NFS; the bucket also where the first answer to each request is lost."""
    if request.param.startswith("S3"):
        server = request.getfixturevalue("s3")
        server.loses = lose_first_answers if request.param != "S3" else server.loses
        return s3_server.place()
    if request.param == "NFS":
        return Folder(request.getfixturevalue("mounts")[0])
    if request.param == "faulty folder":
        faulty = FaultyOs(0, rate=1.0)
        monkeypatch.setattr(faulty, "scandir", os.scandir)  # age is allowed there: test_misbehaving_files
        monkeypatch.setattr(files, "os", faulty)
        monkeypatch.setattr(storage_module, "os", faulty)
    return Folder(tmp_path / "root")


# The contract, for every storage


def names(storage: Storage, prefix: str = "") -> set[str]:
    return {item.name for item in storage.list(prefix)}


def test_put_is_read_back_and_replaced_whole(storage: Storage) -> None:
    for data in (b"one", b"", b"x" * 100_000):
        storage.put("a/b.json", data)
        assert storage.get("a/b.json").data == data
    assert names(storage, "a") == {"b.json"}


def test_get_of_nothing_is_refused(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.get("a/b.json")


def test_put_if_absent_writes_once(storage: Storage) -> None:
    assert storage.put_if_absent("a/1", b"first")
    assert not storage.put_if_absent("a/1", b"second")
    assert storage.get("a/1").data == b"first"
    assert names(storage, "a") == {"1"}


def test_put_if_absent_of_many_writers_one_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = [*threads.map(lambda number: storage.put_if_absent("a/1", b"%d" % number), range(8))]
    assert won.count(True) == 1
    assert storage.get("a/1").data == b"%d" % won.index(True)


def test_overwrite_keeps_the_length_and_needs_an_object(storage: Storage) -> None:
    storage.put("a", b"0001")
    storage.overwrite("a", b"0002")
    assert storage.get("a").data == b"0002"
    with pytest.raises(FileNotFoundError):
        storage.overwrite("b", b"0001")
    assert names(storage) == {"a"}


def test_version_is_the_listed_one_and_changes_with_each_writing(storage: Storage) -> None:
    seen = set()
    for data in (b"1", b"2", b"2"):
        storage.put("a/b", data)
        (listed,) = storage.list("a")
        assert listed.version() == storage.get("a/b").version
        seen.add(listed.version())
    assert len(seen) == 3
    storage.delete("a/b")
    with pytest.raises(FileNotFoundError):
        listed.version()


def test_list_shows_one_level_and_nothing_where_nothing_is(storage: Storage) -> None:
    for key in ("a/1", "a/2/x", "b"):
        storage.put(key, b"")
    assert (names(storage), names(storage, "a"), names(storage, "c"), names(storage, "b")) == (
        {"a", "b"},
        {"1", "2"},
        set(),
        set(),
    )


def test_list_each_is_list_of_each_prefix_below_one(storage: Storage) -> None:
    keys = [f"a/{number:02x}/{name}" for number in range(9) for name in ("1", "2", ".3", "4/5")]
    for key in (*keys, "a/.9/x", "a/alone", "b/00/x"):
        storage.put(key, b"")
    every = {name: listed for name, listed in storage.list_each("a") if name != "alone"}
    assert list(every) == [f"{number:02x}" for number in range(9)]
    some = [f"{number:02x}" for number in (7, 3, 5, 99, 0, 1)]
    for asked in (some[:4], some):
        assert [name for name, _ in storage.list_each("a", asked)] == sorted(set(asked) & every.keys())
    for name, listed in every.items():
        shown = {(item.name, item.mark) for item in storage.list(f"a/{name}")}
        assert {(item.name, item.mark) for item in listed} == shown and len(shown) == 3
        assert next(item for item in listed if item.name == "1").version() == storage.get(f"a/{name}/1").version
    assert not list(storage.list_each("c"))


def test_delete_takes_an_object_or_all_below_a_prefix_and_is_harmless_twice(storage: Storage) -> None:
    for key in ("a/1", "a/2/x", "b"):
        storage.put(key, b"")
    for key in ("a", "a", "b", "b"):
        storage.delete(key)
    assert names(storage) == set()


def test_upload_moves_a_sealed_folder_once(storage: Storage, tmp_path: Path) -> None:
    folders = [sealed(place_beside(storage, tmp_path, f"attempts/{number}"), f"{number}") for number in (1, 2)]
    assert storage.upload(folders[0], "published/x")
    assert not storage.upload(folders[1], "published/x")
    assert [folder.exists() for folder in folders] == [False, True]
    assert storage.get("published/x/below/weights").data == b"1"
    assert names(storage, "published/x") == {"below", "manifest.json"}
    with pytest.raises(FileNotFoundError):
        storage.upload(folders[0], "published/y")


def place_beside(storage: Storage, tmp_path: Path, name: str) -> Path:
    """Return a folder of this machine that can be uploaded: of a folder's, on the same file system."""
    return storage.local(name) if isinstance(storage, Folder) else tmp_path / name


def sealed(folder: Path, weights: str) -> Path:
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "weights").write_text(weights)
    seal_folder(folder)
    return folder


def test_download_copies_an_object_to_a_new_file(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/b", b"x" * 100_000)
    storage.download("a/b", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"x" * 100_000
    with pytest.raises(FileNotFoundError):
        storage.download("a/c", tmp_path / "other")


def test_at_is_the_same_place_however_it_is_reached_or_sent(storage: Storage) -> None:
    storage.put("a/b/c", b"x")
    below = pickle.loads(pickle.dumps(storage.at("a"))).at("b")
    assert below.get("c").data == b"x"
    assert below == storage.at("a/b") and hash(below) == hash(storage.at("a/b")) and below != storage


def test_names_that_begin_with_a_dot_are_not_listed(storage: Storage) -> None:
    storage.put("a/1", b"x")
    storage.put("a/.2", b"x")
    assert names(storage, "a") == {"1"}


def test_lease_is_one_owner_s_at_a_time(storage: Storage) -> None:
    """The lease rests on the storage alone."""
    lease = storage.at("lease")
    first = Lease.acquire(lease, "first")
    assert first is not None and Lease.acquire(lease, "second") is None
    first.beat()
    seen = read_lease(lease)
    assert seen is not None and (seen.number, seen.beat) == (1, 1)
    first.release()
    second = Lease.acquire(lease, "second")
    assert second is not None and second.claim.number == 2
    second.release()


def test_modified_is_by_the_storage_s_own_clock(storage: Storage) -> None:
    storage.put("a", b"1")
    storage.put("b", b"1")
    assert 0 <= storage.get("b").modified - storage.get("a").modified < 60


# The folder


@pytest.mark.parametrize("storage", ["folder", "faulty folder"], indirect=True)
def test_temporary_files_are_not_left(storage: Folder) -> None:
    storage.put("a/1", b"x")
    storage.put_if_absent("a/1", b"y")
    storage.put_if_absent("a/2", b"y")
    assert sorted(os.listdir(storage.local("a"))) == ["1", "2"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        folder = Folder(tmp_path)
        folder.put("a/put", b"")
        folder.put_if_absent("a/absent", b"")
    finally:
        os.umask(before)
    assert {(tmp_path / "a" / name).stat().st_mode & 0o777 for name in ("put", "absent")} == {mode}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("call", ["link", "replace", "fsync", "write"])
def test_refused_write_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(tmp_path)
    folder.put("a", b"before")
    monkeypatch.setattr(files.os, call, refuse)
    with pytest.raises(OSError, match="No space left"):
        (folder.put_if_absent if call == "link" else folder.put)("a", b"after")
    monkeypatch.undo()
    assert folder.get("a").data == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_stale_handle_that_stays_stale_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    Folder(tmp_path).put("a", b"x")
    monkeypatch.setattr(files.os, "open", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        Folder(tmp_path).get("a")


# The bucket


@pytest.mark.parametrize("storage", ["S3"], indirect=True)
def test_overwrite_never_replaces_what_was_written_meanwhile(s3: S3Server, storage: Storage) -> None:
    """A process that stood still between its look and its beat."""
    storage.put("a", b"0001")
    meanwhile = [lambda: storage.put("a", b"0009")]

    def write_first(request: Request) -> None:
        if request.method == "PUT" and meanwhile:
            meanwhile.pop()()

    s3.refuses = write_first
    with pytest.raises(OSError, match="pre-conditions"):
        storage.overwrite("a", b"0002")
    assert storage.get("a").data == b"0009"


@pytest.mark.parametrize("storage", ["S3"], indirect=True)
@pytest.mark.parametrize("ahead_s", [-600, 600])
def test_lease_and_registration_stand_whatever_the_store_s_clock_says(
    s3: S3Server, storage: Storage, ahead_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of owners of another machine, which alone are judged by time."""
    monkeypatch.setattr(lease_module, "is_running", lambda process: None)
    s3.ahead_s = ahead_s
    storage.put("now", b"")
    assert abs(storage.get("now").modified - time.time() - ahead_s) < 60
    clock = iter((0.0, 59.0, 61.0))
    watch = LeaseWatch(lambda: next(clock))
    held = Lease.acquire(storage.at("lease"), "first")
    assert held is not None
    assert [Lease.acquire(storage.at("lease"), "second", watch) is None for _ in range(2)] == [True, True]
    taken = Lease.acquire(storage.at("lease"), "second", watch)
    assert taken is not None and not held.held()
    taken.release()
    with register_run(storage, "one", "first") as first, register_run(storage, "two", "second"):
        assert [run.name for run in find_possible_runs(storage.at("one"))] == [first.name]


def test_credentials_that_are_set_later_are_found(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Bucket(BUCKET, "later")
    with monkeypatch.context() as before:
        before.setenv("AWS_EC2_METADATA_DISABLED", "true")
        before.delenv("AWS_ACCESS_KEY_ID")
        before.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(OSError, match="Unable to locate credentials"):
            place.put("a", b"data")
    place.put("a", b"data")
    assert place.get("a").data == b"data"
