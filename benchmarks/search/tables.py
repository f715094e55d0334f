"""Tables of published trainings as pools to search: read from the stated format, or from the forms they were published in.

The stated format is a CSV file with a header and one row a run. What a column is, its name says before a colon:

    category:model   a category, such as the model, the data, the method
    number:x, log:lr a number; log where ratios count
    share:alpaca     a share of a mixture; all such columns are one factor, and are scaled to sum to 1
    max:gsm8k        a score, better when larger; min: better when smaller; empty where it is missing

Other columns are ignored. Rows that agree in all factors are one candidate, with the mean of their scores. A table that
breaks a rule is refused with the file, the column, the line and the value.

Published forms, by the name that ``read`` takes: ``release`` (block A), ``tinker``, ``regmix`` and ``olmix`` (two files: shares,
then scores), ``admire``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.search.observations import Factor, Space

BENCHMARKS = [
    *("math-0shot", "gsm8k-0shot", "humaneval-0shot", "mbpp-0shot", "BoolQ-0shot", "nq-0shot", "Truthful_QA-0shot"),
    *("mmlu-0shot", "cmmlu-0shot", "jmmlu-0shot", "mtbench-total", "alpaca_eval_v2-total"),
]
FILES = {"regmix": 2, "olmix": 2}  # of a form that has more than one
FACTORS, SCORES = ("category", "number", "log", "share"), ("max", "min")
CELL = ["model_name", "data_name", "lora"]


@dataclass(frozen=True)
class Table:
    """A pool: its space, and scores [candidates, objectives], larger is better, NaN where missing."""

    name: str
    space: Space
    objectives: tuple[str, ...]
    values: np.ndarray

    def only(self, objective: str) -> Table:
        """Return the pool of one objective: the candidates that have it."""
        column = self.values[:, self.objectives.index(objective)]
        rows = np.flatnonzero(~np.isnan(column))
        space = Space(self.space.factors, tuple(self.space.candidates[row] for row in rows))
        return Table(f"{self.name}: {objective}", space, (objective,), column[rows, None])

    def levels(self, name: str | None) -> np.ndarray:
        """Return of each candidate the index of its level in a category; 0 for None."""
        if name is None:
            return np.zeros(len(self.values), dtype=int)
        return np.unique(self.space.levels_of(name), return_inverse=True)[1]


def read(form: str, paths: list[Path]) -> Table:
    """Read a table of the stated format (``csv``) or of a published form."""
    published = {"release": release_a, "tinker": tinker, "regmix": regmix, "olmix": olmix, "admire": admire}
    if form not in ("csv", *published) or len(paths) != FILES.get(form, 1):
        need = ", ".join(f"{known} ({FILES.get(known, 1)})" for known in ["csv", *published])
        found = " ".join([form, *map(str, paths)])
        raise InvalidInput(Problem("--table", f"must be a form and as many files as it has: {need}", found))
    name, frames = paths[0].stem, [read_frame(path) for path in paths]
    if form == "csv":
        return of_frame(name, frames[0])
    try:
        return of_frame(name, published[form](*frames))
    except KeyError as problem:
        raise InvalidInput(Problem(f"{paths[0]}", f"must have the columns of {form}", str(problem.args[0]))) from None


def read_frame(path: Path) -> pd.DataFrame:
    """Return a CSV file as it is. Raises InvalidInput where it cannot be read."""
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].tolist()
        frame = pd.read_csv(path)
    except (OSError, ValueError) as problem:  # pandas' errors of parsing and of encoding are ValueErrors
        raise InvalidInput(Problem(str(path), f"must be a CSV file with a header ({problem})")) from None
    twice = sorted({str(column) for column in header if header.count(column) > 1})
    if twice:
        raise InvalidInput(Problem(str(path), "must name each column once", ", ".join(twice)))
    return frame


def checked(name: str, frame: pd.DataFrame, kinds: dict[str, list[str]]) -> None:
    """Raise InvalidInput with the first line of each column that breaks a rule, lines counted from the header's."""
    problems = []
    for kind, of in (("a factor", FACTORS), ("a score", SCORES)):
        if not any(column_kind in of for column_kind, _ in kinds.values()):
            rule = f"must have a column of {kind}: {', '.join(f'{one}:NAME' for one in of)}"
            problems.append(Problem(name, rule, ", ".join(map(str, frame.columns))))
    if not len(frame):
        problems.append(Problem(name, "must have at least one row"))
    for column, (kind, _) in kinds.items() if len(frame) else ():
        values = frame[column]
        if kind == "category":
            rule, broken = "must have a value in each row", values.isna()
        elif kind in (*FACTORS, *SCORES):
            numbers = pd.to_numeric(values, errors="coerce")
            broken = (numbers.isna() & (values.notna() if kind in SCORES else True)) | np.isinf(numbers)
            rule = "must be finite numbers" + (", or empty" if kind in SCORES else "")
            if kind in ("log", "share") and not broken.any():
                broken, rule = (numbers <= 0, "must be > 0") if kind == "log" else (numbers < 0, "must be >= 0")
            if kind in SCORES and numbers.isna().all() and not broken.any():
                problems.append(Problem(f"{name}: {column}", "must have a value in some row"))
        else:
            continue
        if broken.any():
            place = int(np.flatnonzero(broken)[0])
            problems.append(Problem(f"{name}: {column}, line {place + 2}", rule, values.tolist()[place]))
    if problems:
        raise InvalidInput(problems)


def of_frame(name: str, frame: pd.DataFrame) -> Table:
    """Return a frame of the stated format as a table. Raises InvalidInput for one that is not of the format."""
    kinds = {column: column.split(":", 1) for column in frame.columns if ":" in column}
    checked(name, frame, kinds)
    shares = [column for column, (kind, _) in kinds.items() if kind == "share"]
    single = [column for column, (kind, _) in kinds.items() if kind in ("category", "number", "log")]
    scores = [column for column, (kind, _) in kinds.items() if kind in SCORES]
    if shares and (empty := np.flatnonzero(frame[shares].sum(axis=1) <= 0)).size:
        raise InvalidInput(Problem(f"{name}, line {empty[0] + 2}", "must have a share > 0"))
    frame = frame.groupby(shares + single, sort=True, as_index=False)[scores].mean()
    factors = []
    for column in single:
        kind, label = kinds[column]
        levels = tuple(sorted(frame[column].astype(str).unique())) if kind == "category" else ()
        factors.append(Factor(label, "category" if levels else "number", levels, log=kind == "log"))
    columns: list[list[object]] = []
    for column in single:
        category = kinds[column][0] == "category"
        columns.append(list(frame[column].astype(str)) if category else [float(value) for value in frame[column]])
    if shares:
        labels = tuple(kinds[column][1] for column in shares)
        factors.append(Factor("mixture", "mixture", labels))
        weights = frame[shares].to_numpy(float)
        weights = weights / weights.sum(axis=1, keepdims=True)
        columns.append([dict(zip(labels, row.tolist(), strict=True)) for row in weights])
    signs = np.array([-1.0 if kinds[column][0] == "min" else 1.0 for column in scores])
    space = Space(tuple(factors), tuple(zip(*columns, strict=True)))
    return Table(name, space, tuple(kinds[column][1] for column in scores), frame[scores].to_numpy(float) * signs)


def release_a(frame: pd.DataFrame) -> pd.DataFrame:
    """Return block A of the released table: 1,000 samples, cosine, epoch 10."""
    frame = frame[(frame.data_size == 1000) & (frame.lr_strategy == "cosine") & (frame.epoch == 10)]
    names = dict(zip(CELL, ("category:model", "category:data", "category:method"), strict=True))
    return frame.rename(columns=names | {name: f"max:{name}" for name in BENCHMARKS})


def tinker(frame: pd.DataFrame) -> pd.DataFrame:
    """Return tinker's learning rates and ranks by model; lowest test loss."""
    names = {"model": "category:model", "lr": "log:lr", "rank": "log:rank", "test_nll": "min:test_nll"}
    return frame.rename(columns=names)


def regmix(mixtures: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Return RegMix's mixtures; lowest average loss, recomputed."""
    loss = losses.drop(columns=["metric/avg"], errors="ignore").set_index("index").mean(axis=1).rename("min:average")
    shares = mixtures.set_index("index").add_prefix("share:")
    return shares.join(loss, how="inner").reset_index()


def olmix(ratios: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return Olmix' mixtures; lowest average bits per byte over all metrics."""
    average = metrics.set_index("run").drop(columns=["name", "index"]).select_dtypes("number")
    average = average.loc[:, ~average.columns.str.startswith("Unnamed")].mean(axis=1).rename("min:average")
    shares = ratios.set_index("run").drop(columns=["name", "index"])
    shares = shares.loc[:, ~shares.columns.str.startswith("Unnamed")].add_prefix("share:")
    return shares.join(average, how="inner").reset_index()


def admire(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ADMIRE's mixtures; highest average of the benchmarks, recomputed."""
    scores = [
        column for column in frame.columns if column.startswith("metric_") and not column.startswith("metric_avg")
    ]
    shares = frame[[column for column in frame.columns if column.startswith("ratio_")]]
    shares.columns = shares.columns.str.replace("ratio_", "share:", regex=False)
    return shares.assign(**{"max:average": frame[scores].mean(axis=1)})
