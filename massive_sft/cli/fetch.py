"""``fetch``: on a node with a network, pin every hub revision of a sweep to its commit and bring the files here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from massive_sft.cli.options import File, Json, Overlays, console, print_json
from massive_sft.cli.views import make_table
from massive_sft.core.files import format_bytes, json_bytes
from massive_sft.ledger.lease import Lease, LeaseWatch
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import LOCK
from massive_sft.planning.plan import storage_place, storage_root
from massive_sft.sweep.load import Sweep, load_sweep

if TYPE_CHECKING:  # the hub library takes half a second to import, and every verb imports this module
    from massive_sft.models.hub import Pinned, Repository

OWNER = "massive-sft fetch"
POLL_S = 1.0  # seconds between looks at another fetch on this node


def fetch(
    file: File,
    overlay: Overlays = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check access and say what would be fetched.")] = False,
    pin_only: Annotated[bool, typer.Option("--pin-only", help="Write the lock, download nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Pin the sweep's hub models and datasets to commits and download them; afterwards no network is needed."""
    from massive_sft.models import hub

    sweep = load_sweep(file, overlay or ())
    err = console(is_error=True)
    with err.status("asking the hub"):
        pinned = hub.resolve_all(repositories(sweep))
    known: dict[str, dict[str, str]] = {}
    if not dry_run:
        ledger = Ledger.open(storage_root(sweep), place=storage_place(sweep))
        if not pin_only:
            with _only_one_here(hub.cache_folder(), err):
                for item in pinned:
                    with err.status(Text(f"fetching {item.repository.id}")):
                        known.setdefault(_key(item), {}).update(hub.hashes(item, hub.download(item)))
        ledger.sweep(sweep.file.name).put(LOCK, json_bytes(lock_content(pinned, known)))
    if as_json:
        print_json({"schema": 1, "done": not dry_run, "repositories": [_row(item) for item in pinned]})
    else:
        console().print(_view(pinned, dry_run, pin_only))


def repositories(sweep: Sweep) -> list[Repository]:
    """Return what a sweep takes from the hub, each once; the files that several datasets take of one are joined."""
    from massive_sft.models.hub import repository_of

    known: dict[tuple[str, str, str], Repository] = {}
    named = [(f"models.{name}", model) for name, model in sweep.file.models.items()]
    named += [(f"datasets.{name}", dataset) for name, dataset in sweep.file.datasets.items()]  # type: ignore[misc]
    for place, source in named:
        if source.hub is None:
            continue
        new = repository_of(source, sweep.place(f"{place}.hub"))
        key = (new.kind, new.id, new.revision)
        old = known.get(key)
        if old is not None:
            both = tuple(dict.fromkeys((*old.patterns, *new.patterns))) if old.patterns and new.patterns else ()
            new = replace(old, patterns=both, needed=(*old.needed, *new.needed))
        known[key] = new
    return list(known.values())


def lock_content(pinned: list[Pinned], known: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the content of ``lock.json``: commits by kind, id and revision; SHA-256 by file of what was fetched."""
    commits: dict[str, dict[str, dict[str, str]]] = {"models": {}, "datasets": {}}
    for item in pinned:
        of_kind = commits[f"{item.repository.kind}s"]
        of_kind.setdefault(item.repository.id, {})[item.repository.revision] = item.commit
    return {"schema": 1, "commits": commits, "files": known}


def _only_one_here(cache: Path, err: Any) -> Lease:
    """Return the lease on this node's hub cache, once nobody else fetches into it."""
    place, watch = Folder(cache / ".massive-sft-fetch"), LeaseWatch()
    with err.status("another fetch works on this node; waiting"):
        while (lease := Lease.acquire(place, OWNER, watch)) is None:
            time.sleep(POLL_S)
    return lease


def _key(item: Pinned) -> str:
    return f"{item.repository.kind}:{item.repository.id}@{item.commit}"


def _row(item: Pinned) -> dict[str, Any]:
    repository = item.repository
    size = sum(item.sizes.values())
    named = {"kind": repository.kind, "id": repository.id, "revision": repository.revision}
    return {**named, "commit": item.commit, "bytes": size, "here": item.here}


def _view(pinned: list[Pinned], dry_run: bool, pin_only: bool) -> Group:
    if not pinned:
        return Group(Text("nothing to fetch: the sweep names nothing on the hub"))
    table = make_table("kind", "id", "revision", "commit", "size", "was here", right=("size",))
    for item in pinned:
        repository = item.repository
        size = format_bytes(sum(item.sizes.values()))
        table.add_row(
            repository.kind,
            Text(repository.id),
            repository.revision,
            item.commit[:12],
            size,
            "yes" if item.here else "no",
        )
    left = sum(size for item in pinned if not item.here for size in item.sizes.values())
    summary = {
        (True, False): f"all can be read; {format_bytes(left)} would be fetched",
        (True, True): "all can be read",
        (False, True): "pinned; nothing was downloaded",
        (False, False): f"pinned and here ({format_bytes(left)} fetched); runs need no network now",
    }[dry_run, pin_only]
    return Group(table, Text(summary))
