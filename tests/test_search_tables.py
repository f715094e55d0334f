"""Tables that searches are measured on: the stated format is read, and what is not of it is refused with its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from massive_sft.core.errors import InvalidInput


@pytest.fixture(scope="module")
def tables() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "search"))
    try:
        import tables

        return tables
    finally:
        sys.path.pop(0)


def written(folder: Path, text: str) -> list[Path]:
    file = folder / "made.csv"
    file.write_text(text)
    return [file]


def test_table_with_missing_cells_and_rows_that_agree_is_a_pool(tables: Any, tmp_path: Path) -> None:
    text = "category:model,log:lr,max:quiz,min:loss,note\na,1e-5,1,,x\na,1e-5,3,2,\na,1e-4,,1,y\nb,1e-4,nan,4,\n"
    table = tables.read("csv", written(tmp_path, text))
    assert table.space.candidates == (("a", 1e-5), ("a", 1e-4), ("b", 1e-4))
    np.testing.assert_array_equal(table.values, [[2, -2], [np.nan, -1], [np.nan, -4]])
    assert table.only("quiz").space.candidates == (("a", 1e-5),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"made.csv: must be a CSV file with a header"),
        ("category:model,max:quiz\n", "must have at least one row"),
        ("cat:model,max:quiz\na,1\n", "must have a column of a factor: category:NAME"),
        ("category:model,quiz\na,1\n", "must have a column of a score: max:NAME, min:NAME"),
        ("category:model,category:model,max:quiz\na,a,1\n", "must name each column once, got 'category:model'"),
        ("category:model,max:quiz\na,1\n,2\n", "category:model, line 3: must have a value in each row"),
        ("category:model,max:quiz\na,good\nb,1\n", "max:quiz, line 2: must be finite numbers, or empty, got 'good'"),
        ("category:model,max:quiz\na,inf\n", "max:quiz, line 2: must be finite numbers"),
        ("category:model,max:quiz\na,\n", "max:quiz: must have a value in some row"),
        ("log:lr,max:quiz\n1,1\n0,1\n", "log:lr, line 3: must be > 0, got 0"),
        ("share:a,share:b,max:quiz\n1,0,1\n0,0,1\n", "line 3: must have a share > 0"),
    ],
)
def test_table_that_is_not_of_the_format_is_refused_with_its_place(
    tables: Any, tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        tables.read("csv", written(tmp_path, text))
    with pytest.raises(InvalidInput, match=r"a form and as many files as it has: csv \(1\)"):
        tables.read("regmix", [tmp_path / "made.csv"])
