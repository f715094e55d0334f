"""What benchmarks were first built from, kept in ``lock.json``: their data stays there, and what changed is told.

A change alone mixes nothing: requests have their content in their id, and scores theirs in the protocol's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from massive_sft.core.files import json_bytes
from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.ledger.storage import Storage
from massive_sft.planning.lock import BENCHMARKS, LOCK, lock_content


def changed_benchmarks(place: Storage, built: Iterable[BenchmarkRequests]) -> dict[str, str]:
    """Return what of each benchmark is not as the lock has it, by label; those that the lock lacks are added to it.

    Args:
        place: the sweep's, where its lock lies.
        built: benchmarks with their requests; task files of one's own, which change by one's own hand, count by the
            data that they take from the hub.

    Raises OSError where the lock cannot be written.
    """
    lock = lock_content(place)
    known: dict[str, Any] = lock.get(BENCHMARKS) or {}
    now = {_key(item): _content(item) for item in built if item.task.name is not None or _data(item)}
    if now.keys() - known.keys():
        place.put(LOCK, json_bytes(lock | {BENCHMARKS: now | known}))
    told = {key: _difference(known[key], content) for key, content in now.items() if key in known}
    return {key.partition(" ")[0]: difference for key, difference in told.items() if difference}


def _key(benchmark: BenchmarkRequests) -> str:
    asked = benchmark.requests.identity()
    leaves = asked.pop("leaves")
    if benchmark.task.path is not None:
        asked["tasks"] = [leaf["config"] for leaf in leaves]
    return f"{benchmark.requests.label} {fingerprint(asked)}"


def _content(benchmark: BenchmarkRequests) -> dict[str, Any]:
    requests = benchmark.requests
    leaves = {leaf.name: [leaf.version, leaf.config, leaf.checksum] for leaf in requests.leaves}
    return {
        "versions": {leaf.name: leaf.version for leaf in requests.leaves},
        "data": _data(benchmark),
        "leaves": fingerprint(leaves),
    }


def _data(benchmark: BenchmarkRequests) -> dict[str, str]:
    """Return the commits of the hub's data sets that a benchmark was built from."""
    found: dict[str, str] = benchmark.requests.provenance.get("data") or {}
    return found


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
