"""The marker file of a ledger: ``ledger.json``, which says that a root is one, and of which schema."""

from __future__ import annotations

import json
import logging
import secrets
from contextlib import suppress

from massive_sft.core.errors import Corrupt, InvalidInput, Problem
from massive_sft.ledger.record import newer_schema
from massive_sft.ledger.storage import Folder, Storage

log = logging.getLogger(__name__)

NAME = "ledger.json"
ID = "ledger-id"
SCHEMA = 2
"""Of the layout. 1: records ``record-<n>.json`` and one ``index.jsonl``, which this version reads too."""


def check(root: Storage, place: str) -> int:
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
        remedy = f'with a ledger around it, replace it by {{"schema": {SCHEMA}}}'
        raise Corrupt(f"{root}/{NAME}: states no schema; {remedy}")
    if schema > SCHEMA:
        raise newer_schema(f"{root}/{NAME}", schema, SCHEMA)
    return schema


def prepare(root: Folder, folders: tuple[str, ...], place: str) -> None:
    """Make a root ready for writing: prove that of several writers one wins there, then write the marker last.

    A ledger of an older schema becomes one of this. Nothing of it is converted; older versions refuse it from then on,
    for they would not see the records written now.

    Args:
        root: of the ledger.
        folders: made in it.
        place: as of ``check``.

    Raises InvalidInput when the root cannot be written, and as ``check``.
    """
    try:
        root.local().mkdir(parents=True, exist_ok=True)
        is_new = not any(item.name == NAME for item in root.list())
        schema = 0 if is_new else check(root, place)
        probe = f".probe.{secrets.token_hex(4)}"
        root.put_if_absent(probe, b"")
        root.delete(probe)
        for folder in folders:
            root.local(folder).mkdir(parents=True, exist_ok=True)
        if schema < SCHEMA:
            root.put(NAME, json.dumps({"schema": SCHEMA}).encode() + b"\n")
            root.delete("index.jsonl")
    except OSError as error:
        raise _unusable(root, place, error) from error
    if 0 < schema < SCHEMA:
        log.warning("%s: schema %d is now %d; older versions of massive-sft refuse it", root, schema, SCHEMA)


def ledger_id(root: Storage) -> str:
    """Return the id of the ledger under a root, whatever path leads there; it gets one when it is first asked for.

    Raises OSError when the root can be neither read nor written.
    """
    with suppress(FileNotFoundError):
        return root.get(ID).data.decode().strip()
    root.put_if_absent(ID, f"{secrets.token_hex(8)}\n".encode())
    return root.get(ID).data.decode().strip()


def _unusable(root: Storage, place: str, error: OSError) -> InvalidInput:
    rule = f"must be a folder that can be written and holds hard links ({error.strerror or error})"
    return InvalidInput(Problem(place, rule, str(root)))
