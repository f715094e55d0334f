"""Protocol ids, and the cache of scores by (weights, protocol)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core import files
from massive_sft.core.checksummed_json import read_sealed, seal
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import canonical_json, fingerprint
from massive_sft.evaluation.requests import RequestSet
from massive_sft.sweep import schema, semantics


def protocol_id(protocol: schema.Protocol, requests: RequestSet, ends: Collection[int] = ()) -> str:
    """Return the id of how scores are made: the requests with their tasks, and the engine, dtype and adapters.

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
            **semantics.scoring(requests.generates),
            **({"ends": sorted(ends)} if requests.generates else {}),
        }
    )


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreCache:
    """Scores under ``root/<weights id>/``: a base model is scored once per storage root.

    ``<protocol id>.json`` is the table, sealed, with the checksum of ``<protocol id>.parquet``, the per-sample values.
    An unsound entry counts as not there: it is scored again.
    """

    root: Path

    def get(self, weights: str, protocol: str) -> tuple[dict[str, Any], bytes] | None:
        """Return (table, per-sample values as Parquet), or ``None`` when there are none that are sound."""
        table_path, samples_path = paths(self.root / weights, protocol)
        try:
            entry = read_sealed(table_path)
            samples = samples_path.read_bytes()
        except FileNotFoundError:
            return None
        except Corrupt as error:
            log.warning("%s; it is scored again", error)
            return None
        if hashlib.sha256(samples).hexdigest() != entry["samples"]:
            log.warning("%s: does not match its checksum; it is scored again", samples_path)
            return None
        return entry["table"], samples

    def put(self, weights: str, protocol: str, table: dict[str, Any], samples: bytes) -> None:
        """Store scores atomically."""
        table_path, samples_path = paths(self.root / weights, protocol)
        files.write_bytes(samples_path, samples)
        files.write_bytes(table_path, seal({"table": table, "samples": hashlib.sha256(samples).hexdigest()}))


def paths(folder: Path, protocol: str) -> tuple[Path, Path]:
    """Return where a folder keeps a protocol's table and per-sample values."""
    return folder / f"{protocol}.json", folder / f"{protocol}.parquet"


def write(folder: Path, protocol: str, table: dict[str, Any], samples: bytes) -> None:
    """Write a protocol's per-sample values, then its table, each atomically."""
    table_path, samples_path = paths(folder, protocol)
    files.write_bytes(samples_path, samples)
    files.write_json(table_path, json.loads(canonical_json(table)))  # in the order that the cache gives it back
