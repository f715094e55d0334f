"""Measures of texts in records: which sets there are, and under which names they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from massive_sft.ledger.record import Record
from massive_sft.sweep.semantics import text_set

_PREFIX = text_set("")


def shown_name(measure: str, measures: Iterable[str]) -> str:
    """Return the name under which a measure is shown: that of a set of texts without its hash, where one has it.

    Args:
        measures: all measures beside it, as records name them.
    """
    if not measure.startswith(_PREFIX):
        return measure
    name, _, asked = measure.rpartition(" ")
    return name if Counter(other.rpartition(" ")[0] for other in measures)[name] == 1 else f"{name} {asked[:6]}"


def text_sets(record: Record) -> dict[str, Mapping[str, Any]]:
    """Return what was measured of a record's sets of texts, by what each was asked by."""
    return {
        asked: found
        for asked, found in record.measures.items()
        if asked.startswith(_PREFIX) and isinstance(found, Mapping)
    }


def text_set_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row a cell and set of texts: ``cell``, ``asked``, ``texts`` (the name), ``perplexity`` a token and
    ``bits_per_byte``.
    """
    sets = {record.cell: text_sets(record) for record in records}
    every = {asked for found in sets.values() for asked in found}
    rows = [
        {
            "cell": cell,
            "asked": asked,
            "texts": shown_name(asked, every).removeprefix(_PREFIX),
            "perplexity": numbers.get("perplexity"),
            "bits_per_byte": numbers.get("bits_per_byte"),
        }
        for cell, found in sets.items()
        for asked, numbers in found.items()
    ]
    kinds = dict.fromkeys(("cell", "asked", "texts"), "string")
    kinds |= dict.fromkeys(("perplexity", "bits_per_byte"), "float64")
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)
