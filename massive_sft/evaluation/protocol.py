"""Protocol ids, and the cache of scores by (weights, protocol)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from massive_sft.core.checksummed_json import seal, unseal
from massive_sft.core.errors import Corrupt
from massive_sft.core.files import json_bytes
from massive_sft.core.fingerprint import canonical_json, fingerprint
from massive_sft.evaluation.requests import RequestSet
from massive_sft.ledger.storage import Storage
from massive_sft.sweep import schema, semantics


def protocol_id(protocol: schema.Protocol, requests: RequestSet, ends: Collection[int] = ()) -> str:
    """Return the id of how scores are made: the requests with their tasks and groups, and the engine, dtype and
    adapters.

    The few-shot sampler, its seed and the template enter through the requests. Engines that agree within 1e-5 are
    different protocols all the same. The lm-eval version is provenance: what it changes shows in the requests and in
    the task's version and configuration.

    Args:
        ends: the tokens that end an answer; of no account where nothing is generated.
    """
    return fingerprint(
        {
            "requests": requests.identity(),
            "engine": protocol.engine,
            "dtype": protocol.dtype,
            "adapters": protocol.adapters,
            **semantics.scoring(requests.generates, protocol.engine),
            **({"ends": sorted(ends)} if requests.generates else {}),
        }
    )


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreCache:
    """Scores below ``<weights id>/`` in ``place``: a base model is scored once per storage root.

    ``<protocol id>.json`` is the table, sealed, with the checksum of ``<protocol id>.parquet``, the per-sample values.
    An unsound entry counts as not there: it is scored again.
    """

    place: Storage

    def get(self, weights: str, protocol: str) -> tuple[dict[str, Any], bytes] | None:
        """Return (table, per-sample values as Parquet), or ``None`` when there are none that are sound."""
        place, (table_key, samples_key) = self.place.at(weights), keys(protocol)
        try:
            entry = json.loads(unseal(place.get(table_key).data, f"{place}/{table_key}"))
            samples = place.get(samples_key).data
        except FileNotFoundError:
            return None
        except Corrupt as error:
            log.warning("%s; it is scored again", error)
            return None
        if hashlib.sha256(samples).hexdigest() != entry["samples"]:
            log.warning("%s/%s: does not match its checksum; it is scored again", place, samples_key)
            return None
        return entry["table"], samples

    def put(self, weights: str, protocol: str, table: dict[str, Any], samples: bytes) -> None:
        """Store scores, the table last."""
        place, (table_key, samples_key) = self.place.at(weights), keys(protocol)
        place.put(samples_key, samples)
        place.put(table_key, seal({"table": table, "samples": hashlib.sha256(samples).hexdigest()}))


def keys(protocol: str) -> tuple[str, str]:
    """Return where a protocol's table and per-sample values lie among others."""
    return f"{protocol}.json", f"{protocol}.parquet"


def write(place: Storage, protocol: str, table: dict[str, Any], samples: bytes) -> dict[str, str]:
    """Write a protocol's per-sample values, then its table; return the SHA-256 of each by its key."""
    table_key, samples_key = keys(protocol)
    text = json_bytes(json.loads(canonical_json(table)))  # in the order that the cache gives it back
    place.put(samples_key, samples)
    place.put(table_key, text)
    return {table_key: hashlib.sha256(text).hexdigest(), samples_key: hashlib.sha256(samples).hexdigest()}
