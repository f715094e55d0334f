"""What lm-eval's benchmarks were first built from, kept in ``lock.json``: one that changed since is told.

A change alone mixes nothing: requests have their content in their id, and scores theirs in the protocol's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from massive_sft.core.files import json_bytes
from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.ledger.storage import Storage
from massive_sft.planning.plan import LOCK

SECTION = "benchmarks"  # of lock.json; `massive-sft fetch` writes that anew, without it


def changed_benchmarks(place: Storage, built: Iterable[BenchmarkRequests]) -> dict[str, str]:
    """Return what of each benchmark is not as the lock has it, by label; those that the lock lacks are added to it.

    Args:
        place: the sweep's, where its lock lies.
        built: benchmarks with their requests; task files of one's own, which change by one's own hand, are left out.

    Raises OSError where the lock cannot be written.
    """
    lock: dict[str, Any] = {"schema": 1, "commits": {}, "files": {}}
    with suppress(FileNotFoundError):
        lock |= json.loads(place.get(LOCK).data)  # sound, for the plan was made of it
    known: dict[str, Any] = lock.get(SECTION) or {}
    now = {_key(item): _content(item) for item in built if item.task.name is not None}
    if now.keys() - known.keys():
        place.put(LOCK, json_bytes(lock | {SECTION: now | known}))
    told = {key: _difference(known[key], content) for key, content in now.items() if key in known}
    return {key.partition(" ")[0]: difference for key, difference in told.items() if difference}


def _key(benchmark: BenchmarkRequests) -> str:
    asked = benchmark.requests.identity()
    del asked["leaves"]
    return f"{benchmark.requests.label} {fingerprint(asked)}"


def _content(benchmark: BenchmarkRequests) -> dict[str, Any]:
    requests = benchmark.requests
    leaves = {leaf.name: [leaf.version, leaf.config, leaf.checksum] for leaf in requests.leaves}
    return {
        "versions": {leaf.name: leaf.version for leaf in requests.leaves},
        "data": requests.provenance.get("data") or {},
        "leaves": fingerprint(leaves),
    }


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words what changed; empty where the requests are the same, whatever commit they came from."""
    if before["leaves"] == now["leaves"]:
        return ""
    said = [
        f"{name} is version {version}, and was {before['versions'].get(name, 'not there')}"
        for name, version in now["versions"].items()
        if before["versions"].get(name) != version
    ]
    said += [
        f"{name} is at {commit[:12]}, and was at {str(before['data'].get(name, 'no commit'))[:12]}"
        for name, commit in now["data"].items()
        if before["data"].get(name) != commit
    ]
    return "; ".join(said[:3]) or "its questions, its examples or the code of its task are others"
