"""The records of a ledger keep their contract over every storage, and by listings alone where those show many cells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.view import View
from chaos.watch import recording
from nfs_mounts import mounts
from s3_server import s3
from test_ledger import cell_id, make_record
from test_storage import storage

from massive_sft.core import files
from massive_sft.core.errors import LeaseLost
from massive_sft.ledger import records as records_module
from massive_sft.ledger.lease import Claim, Lease
from massive_sft.ledger.record import Record, Status, dump_record
from massive_sft.ledger.record_places import RecordPlaces, Together, WithCells
from massive_sft.ledger.records import Records
from massive_sft.ledger.storage import Folder, Storage
from massive_sft.ledger.store import Ledger

__all__ = ["mounts", "s3", "storage"]  # fixtures
CELLS = [f"{number:02x}00000000000000" for number in (0, 1, 1, 255)]
CELLS[2] = f"{CELLS[1][:-1]}f"  # which lies beside the one before it


class Reader:
    """A process that looks at records.

    Attributes:
        unsound: the keys of the records that it found unsound.
    """

    def __init__(self, storage: Storage, places: type[RecordPlaces]):
        self.unsound: list[str] = []
        self.records = Records(storage, places(storage), lambda key, error: self.unsound.append(key))

    def listed(self) -> dict[str, Status]:
        return {cell: entry.status for cell, entry in self.records.listed_entries().items()}

    def looked_at(self) -> dict[str, Status]:
        return {cell: entry.status for cell, entry in self.records.entries().items()}


@pytest.fixture(params=[Together, WithCells])
def places(request: pytest.FixtureRequest) -> type[RecordPlaces]:
    """Where records lie in new ledgers, and in earlier ones."""
    found: type[RecordPlaces] = request.param
    return found


def failed(cell: str) -> Record:
    return make_record(cell, status=Status.FAILED, error="x")


def test_record_written_is_the_newest_and_read_by_every_process(storage: Storage, places: type[RecordPlaces]) -> None:
    writer = Reader(storage, places).records
    for cell in CELLS:
        writer.write(failed(cell))
    newer = make_record(CELLS[1], attempt=2)
    key = writer.write(newer)
    assert storage.get(key).data == dump_record(newer)
    reader = Reader(storage, places)
    assert reader.records.read(CELLS[1]) == newer
    assert reader.records.read(cell_id(7)) is None
    assert [record.attempt for record in reader.records.history(CELLS[1])] == [2, 1]
    assert [record.cell for record in reader.records.read_all()] == sorted(CELLS)
    expected = {cell: Status.COMPLETE if cell == CELLS[1] else Status.FAILED for cell in CELLS}
    assert reader.listed() == reader.looked_at() == expected
    assert set(reader.records.entries(CELLS[:2])) == set(reader.records.listed_entries(CELLS[:2])) == set(CELLS[:2])
    assert reader.unsound == []


def test_record_new_gone_or_another_file_is_seen_by_its_listing(storage: Storage, places: type[RecordPlaces]) -> None:
    """Whoever did it, and without a word in the index."""
    writer = Reader(storage, places).records
    keys = [writer.write(failed(cell)) for cell in CELLS[:3]]
    assert set(Reader(storage, places).listed()) == set(CELLS[:3])
    told = {name: storage.get(f"index/{name}").data for name in (item.name for item in storage.list("index"))}
    storage.delete(keys[0])
    storage.put(keys[1], dump_record(make_record(CELLS[1])))
    for cell in CELLS[2:]:
        writer.write(make_record(cell))
    storage.delete("index")
    for name, data in told.items():
        storage.put(f"index/{name}", data)
    expected = dict.fromkeys(CELLS[1:], Status.COMPLETE)
    assert Reader(storage, places).listed() == expected
    assert Reader(storage, places).looked_at() == expected


def test_record_known_by_its_listing_is_neither_opened_nor_asked_for_its_version(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in CELLS:
        Reader(storage, Together).records.write(make_record(cell))
    Reader(storage, Together).looked_at()
    reader = Reader(storage, Together)
    monkeypatch.setattr(records_module, "load_record", None)
    monkeypatch.setattr(reader.records.places, "_storage", Unasked(storage))
    assert reader.listed() == dict.fromkeys(CELLS, Status.COMPLETE)


class Unasked:
    """A storage of which nothing but listings may be asked."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def list_each(self, prefix: str, names: object = None) -> Iterator[tuple[str, list[object]]]:
        for name, listed in self._storage.list_each(prefix):
            yield name, [item._replace(version=None) for item in listed]


@pytest.mark.parametrize("storage", ["folder"], indirect=True)
@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("by_reading", [True, False])
def test_record_changed_in_place_is_seen_by_who_looks_and_by_listings_from_then_on(
    storage: Folder, sound: bool, by_reading: bool
) -> None:
    keys = [Reader(storage, Together).records.write(failed(cell)) for cell in CELLS]
    assert set(Reader(storage, Together).listed()) == set(CELLS)
    path = storage.local(keys[1])
    before = path.stat().st_ino
    path.write_bytes(dump_record(make_record(CELLS[1])) if sound else b"torn")
    assert path.stat().st_ino == before
    expected = dict.fromkeys(CELLS, Status.FAILED)
    assert Reader(storage, Together).listed() == expected
    expected |= {CELLS[1]: Status.COMPLETE}
    if not sound:
        del expected[CELLS[1]]
    looker = Reader(storage, Together)
    if by_reading and not sound:
        assert looker.records.read(CELLS[1]) is None
    else:
        assert looker.looked_at() == expected
    assert looker.unsound == ([] if sound else [keys[1]])
    later = Reader(storage, Together)
    assert later.listed() == later.looked_at() == expected
    path.write_bytes(dump_record(make_record(CELLS[1])))  # it is mended
    mended = dict.fromkeys(CELLS, Status.FAILED) | {CELLS[1]: Status.COMPLETE}
    assert Reader(storage, Together).listed() == Reader(storage, Together).looked_at() == mended


def test_record_that_is_damaged_hides_the_older_ones(storage: Storage, places: type[RecordPlaces]) -> None:
    writer = Reader(storage, places).records
    writer.write(make_record(CELLS[0]))
    newest = writer.write(failed(CELLS[0]))
    storage.put(newest, b"")
    for _ in range(2):
        reader = Reader(storage, places)
        assert reader.listed() == reader.looked_at() == {}
        assert reader.records.read(CELLS[0]) is None and not list(reader.records.history(CELLS[0]))
        assert set(reader.unsound) == {newest}


def test_record_of_an_owner_that_cannot_see_that_it_lost_the_lease_sorts_below(
    storage: Storage, places: type[RecordPlaces], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = storage.at(f"cells/{CELLS[0]}/lease")
    first = Lease.acquire(place, "first")
    assert first is not None
    first.release()
    second = Lease.acquire(place, "second")
    assert second is not None
    monkeypatch.setattr(Claim, "verify", lambda self: None)  # a listing that is a minute old
    writer = Reader(storage, places).records
    writer.write(failed(CELLS[0]), first.claim)
    writer.write(make_record(CELLS[0]), second.claim)
    with pytest.raises(LeaseLost, match="was written since"):
        writer.write(failed(CELLS[0]), first.claim)
    second.release()
    assert Reader(storage, places).listed() == {CELLS[0]: Status.COMPLETE}


def test_record_in_another_folder_or_with_another_name_is_none(storage: Storage) -> None:
    data = dump_record(make_record(CELLS[3]))
    for key in (f"records/00/{CELLS[3]}.record-00000001-0001.json", "records/ff/x.record-00000001-0001.json"):
        storage.put(key, data)
    reader = Reader(storage, Together)
    assert reader.listed() == reader.looked_at() == {}
    assert not list(reader.records.read_all())


# Ledgers


def test_ledger_that_is_new_has_its_records_together_and_an_earlier_one_keeps_them_with_its_cells(
    tmp_path: Path,
) -> None:
    new, earlier = Ledger.open(tmp_path / "new"), tmp_path / "earlier"
    assert new.write_record(make_record(CELLS[0])).parent == new.root / "records" / "00"
    earlier.mkdir()
    (earlier / "ledger.json").write_text('{"schema": 2}')
    for _ in range(2):
        path = Ledger.open(earlier).write_record(make_record(CELLS[0]))
        assert path.parent == earlier / "cells" / CELLS[0]
    assert (earlier / "ledger.json").read_text() == '{"schema": 2}'
    assert not (earlier / "records").exists()


@pytest.mark.parametrize("schema", [2, 3])
def test_ledger_that_lost_its_head_is_known_by_its_folders(tmp_path: Path, schema: int) -> None:
    (tmp_path / "ledger.json").write_text(f'{{"schema": {schema}}}')
    before = Ledger.open(tmp_path)
    before.write_record(make_record(CELLS[0]))
    os.remove(tmp_path / "ledger.json")
    assert Ledger.open(tmp_path).read_record(CELLS[0]) is not None
    assert f'"schema": {schema}' in (tmp_path / "ledger.json").read_text()


def test_ledger_that_is_not_there_yet_has_no_records(tmp_path: Path) -> None:
    ledger = Ledger(Folder(tmp_path / "later"))
    assert ledger.read_record(CELLS[0]) is None
    assert ledger.entries() == {}
    Ledger.open(tmp_path / "later").write_record(make_record(CELLS[0]))
    assert ledger.read_record(CELLS[0]) is not None


def test_record_that_is_being_written_is_what_chaos_takes_for_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, seen, link = Ledger.open(tmp_path), [], os.link

    def look_first(source: Path, target: Path) -> None:
        seen.extend(recording(View(tmp_path)))
        link(source, target)

    monkeypatch.setattr(files.os, "link", look_first)
    lease = ledger.lease_cell(CELLS[0], "me")
    assert lease is not None
    with lease:
        ledger.write_record(make_record(CELLS[0]), lease.claim)
    assert seen == [CELLS[0]]
