"""Whether the object store that ``storage.snapshots`` names takes snapshots, keeps its word, and lets go of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from massive_sft.core.errors import InvalidInput, Problem, Unsupported
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.folder_cache import FolderCache
from massive_sft.planning.plan import Plan
from massive_sft.planning.snapshot_address import snapshot_address

RETURNED_TWICE = "takes an object twice that must be absent (If-None-Match): of two writers both would win there"


def snapshot_store_problems(plan: Plan) -> Iterator[Problem]:
    """Write, write again, read, list and delete an object of a few bytes, as a run does with a snapshot's files."""
    address, place = snapshot_address(plan.sweep), f"{plan.sweep.path}: storage.snapshots"
    if address is None:
        return
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
