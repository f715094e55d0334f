"""The files that go with a run. No weights, and of the responses only a sample: both are large, and in the ledger."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger

SAMPLE = 20
"""Responses shown of each task."""


def attach_cell(ledger: Ledger, record: Record, folder: Path) -> None:
    """Write a cell's files into ``folder``: its record, what it is, its layer change, a sample of its responses."""
    home = ledger.cell_dir(record.cell)
    text = json.dumps(record.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    (folder / "record.json").write_text(text + "\n")
    for name in ("cell.json", "layers.parquet"):
        if (home / name).is_file():
            (folder / name).write_bytes((home / name).read_bytes())
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
