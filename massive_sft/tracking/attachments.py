"""The files that go with a run. No weights, and of the responses only a sample: both are large, and in the ledger."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from massive_sft.files import read_json, write_json
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger

SAMPLE = 20
"""Responses shown of each task."""


def attach_cell(ledger: Ledger, record: Record, folder: Path) -> None:
    """Write a cell's files into ``folder``: its record, what it is, its layer change, a sample of its responses.

    Raises OSError or ValueError when they cannot be read.
    """
    home = ledger.cell_dir(record.cell)
    write_json(folder / "record.json", _redacted(record.model_dump(mode="json", by_alias=True)))
    write_json(folder / "cell.json", _redacted(read_json(home / "cell.json")))
    if (home / "layers.parquet").is_file():
        (folder / "layers.parquet").write_bytes((home / "layers.parquet").read_bytes())
    sample = list(_responses(home / "responses", record))
    if sample:
        (folder / "responses-sample.jsonl").write_text("".join(sample))


def attach_file(path: Path, folder: Path) -> None:
    """Copy a file of the sweep into ``folder``; of a YAML file without what looks like a secret.

    Raises OSError when it cannot be read.
    """
    data = path.read_bytes()
    if path.suffix in (".yaml", ".yml"):
        data = redact(data.decode()).encode()
    (folder / path.name).write_bytes(data)


def _responses(home: Path, record: Record) -> Iterator[str]:
    for protocol, scores in sorted(record.scores.items(), key=lambda item: item[1].benchmark):
        for shard in sorted((home / protocol).glob("*/00000.jsonl.gz")):
            with gzip.open(shard, "rt") as file:
                for line in itertools.islice(file, 1, 1 + SAMPLE):  # the first line is the shard's head
                    head = {"benchmark": scores.benchmark, "task": shard.parent.name}
                    yield json.dumps(head | json.loads(line), ensure_ascii=False) + "\n"


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value
