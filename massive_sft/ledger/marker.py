"""The marker file of a ledger: ``ledger.json``, which says that a root is one, and of which schema."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import time
from contextlib import suppress

from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.ledger.record import newer_schema
from massive_sft.ledger.record_places import FOLDER as RECORDS
from massive_sft.ledger.record_places import RecordPlaces, Together, WithCells
from massive_sft.ledger.storage import Folder, Root, Storage

log = logging.getLogger(__name__)

NAME = "ledger.json"
ID = "ledger-id"
LATE_S = 5.0  # after which a file is not there
SCHEMA = 3
"""Of the layout. Ledgers of schema 2 are read and written as they are and stay so, those of schema 1 become 2.

2: records lie in the cells' folders. 1: besides, they are named ``record-<n>.json``, and the index is ``index.jsonl``.
"""
WITH_CELLS = 2


def check(root: Root, place: str) -> int:
    """Return the schema of the ledger under a root.

    Args:
        root: of the ledger.
        place: where the root is named, for what is said of it.

    Raises:
        InvalidInput: the root is no ledger, or cannot be read.
        Unsupported: a newer version of massive-sft made it.
        Corrupt: ``ledger.json`` is unsound.
    """
    try:
        data = root.get(NAME).data
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInput(Problem(place, f"is no ledger, it has no {NAME}", str(root))) from error
    except OSError as error:
        raise _unusable(root, place, error) from error
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or schema < 1:
        remedy = f'with a ledger around it, replace it by {{"schema": {_schema_by_folders(_names(root))}}}'
        raise Corrupt(f"{root}/{NAME}: states no schema; {remedy}")
    if schema > SCHEMA:
        raise newer_schema(f"{root}/{NAME}", schema, SCHEMA)
    return schema


def prepare(root: Root, folders: tuple[str, ...], place: str) -> None:
    """Make a root ready for writing: prove that of several writers one wins there, then write the marker last.

    A ledger of schema 1 becomes one of schema 2. Nothing of it is converted; versions that know only 1 refuse it from
    then on, for they would not see the records written now.

    Args:
        root: of the ledger.
        folders: made in it.
        place: as of ``check``.

    Raises InvalidInput when the root cannot be written, and as ``check``.
    """
    try:
        root.local().mkdir(parents=True, exist_ok=True)
        names = _names(root)
        is_new = NAME not in names
        schema = _schema_by_folders(names) if is_new else check(root, place)
        probe = f".probe.{secrets.token_hex(4)}"
        root.put_if_absent(probe, b"")
        root.delete(probe)
        for folder in (RECORDS, *folders) if schema > WITH_CELLS else folders:  # in this order, see _schema_by_folders
            root.local(folder).mkdir(parents=True, exist_ok=True)
        if is_new or schema < WITH_CELLS:
            root.put(NAME, json.dumps({"schema": max(schema, WITH_CELLS)}).encode() + b"\n")
            root.delete("index.jsonl")
    except OSError as error:
        raise _unusable(root, place, error) from error
    if schema < WITH_CELLS:
        log.warning("%s: schema %d is now %d; older versions of massive-sft refuse it", root, schema, WITH_CELLS)


def _names(root: Storage) -> set[str]:
    return {item.name for item in root.list()}


def _schema_by_folders(names: set[str]) -> int:
    """Return of which schema a root that holds these is, or becomes, where its marker does not say so."""
    return WITH_CELLS if "cells" in names and RECORDS not in names else SCHEMA


def record_places(root: Root) -> RecordPlaces:
    """Return where the records of the ledger under a root lie, or would if it is to be one. Raises as ``check``."""
    names = _names(root)
    schema = check(root, "storage.root") if NAME in names else _schema_by_folders(names)
    return Together(root) if schema > WITH_CELLS else WithCells(root)


def ledger_id(root: Storage) -> str:
    """Return the id of the ledger under a root, whatever path leads there; it gets one when it is first asked for.

    Raises OSError when the root can be neither read nor written.
    """
    with suppress(FileNotFoundError):
        return root.get(ID).data.decode().strip()
    root.put_if_absent(ID, f"{secrets.token_hex(8)}\n".encode())
    return root.get(ID).data.decode().strip()


def why_unseen(root: Root, known: str) -> str:
    """Return why this machine does not see a ledger that others do; empty where it does.

    Args:
        root: of the ledger. One in an object store is taken to be seen, and says itself what is wrong.
        known: its id, as the others see it. A file system that shows new files late is given time.
    """
    if not isinstance(root, Folder):
        return ""
    until_s = time.monotonic() + LATE_S
    while True:
        with suppress(OSError, ValueError):
            if root.get(ID).data.decode().strip() == known:
                return ""
        if time.monotonic() > until_s:
            where = f"{root} on {socket.gethostname()}"
            return f"{where} is not the ledger that the run writes: the file system that nodes share is not there"
        time.sleep(LATE_S / 20)


def _unusable(root: Root, place: str, error: OSError) -> InvalidInput:
    return InvalidInput(Problem(place, f"{root.rule} ({error.strerror or error})", str(root)))
