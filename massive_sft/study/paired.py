"""What two cells' values of the same samples come to, and where they lie."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from massive_sft.ledger.paths import cell_key
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger

LEVEL = 0.95
EQUAL = 1e-9
"""Share of the largest value below which a spread is rounding, and the values are equal."""


@dataclass(frozen=True)
class McNemar:
    """Samples that one cell alone gets right, and the two-sided probability of a split so uneven (exact binomial)."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Paired:
    """The second cell's score less the first's, on the samples that both have.

    Attributes:
        mean: the difference of the two scores of these samples, in their unit.
        interval: its 95 % one, as of ``paired_gains.paired_interval``.
        n: samples that both cells have.
        unpaired: samples that one cell alone has, left out.
        mcnemar: where every value is 0 or 1.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    unpaired: int
    mcnemar: McNemar | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def samples_file(ledger: Ledger, record: Record, protocol: str) -> Path | None:
    """Return the Parquet file of a cell's per-sample values under a protocol; None when the ledger holds none.

    Raises ``Corrupt`` when the file is not the one that the record rests on.
    """
    name = f"{cell_key(record.cell)}/scores/{protocol}.parquet"
    if name not in record.files:
        path = ledger.storage.fetch_file(name)
        return path if path.is_file() else None
    try:
        return ledger.verified_file(record, name)
    except FileNotFoundError:
        return None
