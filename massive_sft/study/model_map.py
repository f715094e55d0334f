"""A map of models: each is a vector of log-likelihoods of the same texts, and near ones predict alike.

After Oyama, Yamagiwa, Takase and Shimodaira, "Mapping 1,000+ language models via the log-likelihood vector" (ACL 2025):
with the means of models and of texts taken off, squared distances between vectors estimate twice the Kullback-Leibler
divergence of the models' distributions of texts, times the number of texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from massive_sft.core.errors import Corrupt
from massive_sft.ledger.paths import cell_key, texts_file
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.study.frames import to_rows
from massive_sft.study.text_sets import text_set_frame

FEWEST = 3  # models that a map can show


@dataclass(frozen=True)
class ModelMap:
    """Models in the plane of the two axes along which they differ most.

    Attributes:
        name: of the set of texts.
        texts: how many of them count.
        left_out: how many do not, because a model gives them no finite log-likelihood.
        cells: of the models.
        places: float64, shape (cells, 2), in nats: distances between two places are at most those between their models'
            vectors, with the means taken off.
        shares: of the two axes in the variance of the vectors.
    """

    name: str
    texts: int
    left_out: int
    cells: tuple[str, ...]
    places: np.ndarray
    shares: tuple[float, float]


def model_maps(ledger: Ledger, records: Iterable[Record]) -> list[ModelMap]:
    """Return a map for each set of texts that ``FEWEST`` models were measured on.

    A file that is not there or unsound leaves its cell out, and is noted (``Ledger.report_corrupt``).
    """
    by_cell = {record.cell: record for record in records}
    frame = text_set_frame(by_cell.values())
    found = []
    for (name, asked), members in frame.groupby(["texts", "asked"], sort=True):
        rows = [(row["cell"], _vector(ledger, by_cell[row["cell"]], str(asked))) for row in to_rows(members)]
        vectors = {cell: vector for cell, vector in rows if vector is not None}
        if len(vectors) >= FEWEST:
            found.append(_map_of(str(name), vectors))
    return found


def _map_of(name: str, vectors: dict[str, np.ndarray]) -> ModelMap:
    rows = np.stack(list(vectors.values()))
    finite = np.isfinite(rows).all(axis=0)
    places, shares = principal_axes(rows[:, finite])
    return ModelMap(name, int(finite.sum()), int((~finite).sum()), tuple(vectors), places, shares)


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return places along the two principal axes, and the axes' shares in the variance.

    The means of models and of texts are taken off first. The axes' signs are those that make the largest loading of
    each positive, so that equal vectors give equal maps.

    Args:
        vectors: float64, shape (models, texts).

    Returns:
        Places of shape (models, 2); zeros and shares of 0 where models do not differ.
    """
    if not vectors.size:
        return np.zeros((len(vectors), 2)), (0.0, 0.0)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    places, shares = np.zeros((len(vectors), 2)), [0.0, 0.0]
    for axis in range(min(2, len(sizes))):
        sign = np.sign(right[axis, np.abs(right[axis]).argmax()]) or 1.0
        places[:, axis] = sign * sizes[axis] * left[:, axis]
        shares[axis] = float(sizes[axis] ** 2) / total if total > 0 else 0.0
    return places, (shares[0], shares[1])


def map_frame(maps: Iterable[ModelMap]) -> pd.DataFrame:
    """Return one row a model and set of texts: ``texts``, ``cell``, ``x``, ``y``, in nats."""
    rows = [
        {"texts": one.name, "cell": cell, "x": float(x), "y": float(y)}
        for one in maps
        for cell, (x, y) in zip(one.cells, one.places, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["texts", "cell", "x", "y"])
    return frame.astype({"texts": "string", "cell": "string", "x": "float64", "y": "float64"})


def _vector(ledger: Ledger, record: Record, asked: str) -> np.ndarray | None:
    name = f"{cell_key(record.cell)}/{texts_file(asked)}"
    try:
        path = ledger.verified_file(record, name)
        vector: np.ndarray = pq.read_table(path, columns=["logprob"])["logprob"].to_numpy()
    except KeyError:
        return None
    except (Corrupt, OSError, ValueError) as error:
        ledger.report_corrupt(ledger.root / name, f"{ledger.root / name}: cannot be read ({error})")
        return None
    return vector
