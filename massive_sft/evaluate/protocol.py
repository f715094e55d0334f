"""Protocol ids, and the cache of scores by (weights, protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft import files, schema
from massive_sft.evaluate.requests import RequestSet
from massive_sft.fingerprint import fingerprint


def protocol_id(protocol: schema.Protocol, requests: RequestSet) -> str:
    """Return the id of how scores are made: the requests with their tasks, and the engine, dtype and adapters.

    The few-shot sampler, its seed and the template enter through the requests. Engines that agree within 1e-5 are
    different protocols all the same. The lm-eval version is provenance: what it changes shows in the requests and in
    the task's version and configuration.
    """
    return fingerprint(
        {
            "requests": requests.identity(),
            "engine": protocol.engine,
            "dtype": protocol.dtype,
            "adapters": protocol.adapters,
        }
    )


@dataclass(frozen=True)
class ScoreCache:
    """Scores under ``root/<weights id>/<protocol id>.json``: a base model is scored once per storage root."""

    root: Path

    def path(self, weights: str, protocol: str) -> Path:
        return self.root / weights / f"{protocol}.json"

    def get(self, weights: str, protocol: str) -> dict[str, Any] | None:
        """Return the scores, or ``None`` when there are none. Raises ``Corrupt`` when the file does not parse."""
        path = self.path(weights, protocol)
        return files.read_json(path) if path.is_file() else None

    def put(self, weights: str, protocol: str, scores: dict[str, Any]) -> None:
        """Store scores atomically."""
        files.write_json(self.path(weights, protocol), scores)
