"""Whether the object stores that a sweep names keep their word: they take objects once, give them and let them go."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from massive_sft.core.errors import InvalidInput, Problem, Unsupported
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.folder_cache import FolderCache
from massive_sft.ledger.storage import Folder
from massive_sft.planning.plan import Plan, storage_place
from massive_sft.planning.snapshot_address import snapshot_address

RETURNED_TWICE = "takes an object twice that must be absent (If-None-Match): of two writers both would win there"


def snapshot_store_problems(plan: Plan) -> Iterator[Problem]:
    """Write, write again, read, list and delete an object of a few bytes, as a run does with a snapshot's files.

    Of each store: that of snapshots, and that of the storage root.
    """
    address, named = snapshot_address(plan.sweep), plan.sweep.file.storage.snapshots
    if address is not None and named is not None:
        yield from _problems(plan.sweep.place("storage.snapshots"), address)
    if not isinstance(plan.storage, Folder):
        yield from _problems(storage_place(plan.sweep), str(plan.storage))


def _problems(place: str, address: str) -> Iterator[Problem]:
    probe = f".probe-{secrets.token_hex(4)}"
    store = Bucket.of(address).at(probe)
    try:
        is_once = store.put_if_absent("1", b"probe") and not store.put_if_absent("1", b"other")
        store.get("1")
        store.sizes()
        store.delete("")
        with FolderCache.of_this_machine().hold(probe, 0, lambda folder: None):
            pass
        FolderCache.of_this_machine().remove(probe)
    except OSError as error:
        yield Problem(place, f"cannot be used: {error.filename}: {error.strerror}", address)
    except Unsupported as error:
        yield Problem(place, str(error), address)
    except InvalidInput as error:
        yield from error.problems
    else:
        if not is_once:
            yield Problem(place, RETURNED_TWICE, address)
