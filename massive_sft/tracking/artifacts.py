"""The artifacts of an MLflow run. No weights, and of the responses only a sample: both are large, and in the ledger."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import decompress_lines
from massive_sft.evaluation.interim_looks import looks_key
from massive_sft.evaluation.responses import shard_name
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record
from massive_sft.ledger.storage import Storage
from massive_sft.ledger.store import Ledger
from massive_sft.tracking.run_fields import layer_profile

SAMPLE_RESPONSES = 20
"""Responses shown of each task."""


def write_cell_artifacts(ledger: Ledger, record: Record, folder: Path) -> None:
    """Write a cell's files into ``folder``: its record, what it is, its layer change, a sample of its responses.

    One that is not what the record says is reported and left out. Raises OSError, ValueError, ``Corrupt`` where what
    the cell is cannot be read.
    """
    # Not flushed to the disk: the folder is gone after the upload.
    for name, content in (
        ("record.json", record.model_dump(mode="json", by_alias=True)),
        ("cell.json", ledger.read_cell(record.cell)),
    ):
        (folder / name).write_text(json.dumps(_redacted(content), indent=1, ensure_ascii=False) + "\n")
    layers = layer_profile(record)
    if layers:
        lines = [f"{layer},{change!r}\n" for layer, change in layers]
        (folder / "layers.csv").write_text("layer,relative_change\n" + "".join(lines))
    for name in (name for name in record.files if name.endswith("/layers.parquet")):
        try:
            (folder / "layers.parquet").write_bytes(ledger.verified_file(record, name).read_bytes())
        except (Corrupt, FileNotFoundError) as error:
            ledger.report_corrupt(ledger.root / name, str(error))
    sample = list(_responses(ledger, record))
    if sample:
        (folder / "responses-sample.jsonl").write_text("".join(sample))


def copy_artifact(path: Path, folder: Path) -> None:
    """Copy a file of the sweep into ``folder``; text, whatever its name ends in, without what looks like a secret.

    A page stays as it is, for its own code may look so, and what it tells comes from records, which hide theirs.
    Raises OSError when it cannot be read.
    """
    data = path.read_bytes()
    if path.suffix != ".html":
        with suppress(UnicodeDecodeError):
            data = redact(data.decode()).encode()
    (folder / path.name).write_bytes(data)


def _responses(ledger: Ledger, record: Record) -> Iterator[str]:
    home = ledger.cell(record.cell).at("responses")
    for protocol, scores in sorted(record.scores.items(), key=lambda item: item[1].benchmark):
        asked = f"{looks_key(scores.early.protocol)}/1" if scores.early else protocol
        for task in sorted(item.name for item in home.list(asked)):
            shard = f"{asked}/{task}/{shard_name(0)}"
            try:
                lines = _lines(home, shard)
            except FileNotFoundError:
                continue
            except Corrupt as error:
                ledger.report_corrupt(home.local(shard), str(error))
                continue
            for line in itertools.islice(lines, SAMPLE_RESPONSES):
                head = {"benchmark": scores.benchmark, "task": task}
                yield json.dumps(head | json.loads(line), ensure_ascii=False) + "\n"


def _lines(place: Storage, shard: str) -> list[str]:
    """Return a shard's responses. Its first line states their checksum; raises ``Corrupt`` when it is another."""
    head, *lines = decompress_lines(place.get(shard).data, f"{place}/{shard}")
    if hashlib.sha256("\n".join(lines).encode()).hexdigest() not in head:
        raise Corrupt(f"{place}/{shard}: does not match its checksum")
    return lines


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value
