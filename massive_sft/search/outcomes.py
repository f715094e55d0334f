"""What came of a decision: the numbers that a search looks at, read from the ledger's records.

Nothing in an outcome depends on when, where or in which attempt a cell was made: so logs are equal byte by byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from massive_sft.core.errors import Problem
from massive_sft.core.fingerprint import canonical_json
from massive_sft.ledger.asked import is_answered
from massive_sft.ledger.record import AWAITED, BenchmarkScores, Record, Score, Status
from massive_sft.planning.outcome import RETRAIN
from massive_sft.planning.requirements import Requirement
from massive_sft.suites.declared import title
from massive_sft.suites.metrics import headline, primary_metric, scale, split
from massive_sft.sweep.schema import Mean, Search

MEASURES = {"perplexity": ("response", "perplexity_micro")}
"""Measures that are one number of a cell, and where that is in a record."""

Kind = Literal["complete", "diverged", "infeasible", "given_up"]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        kind: ``complete``: it has its values; ``diverged``; ``infeasible``: memory ran out; ``given_up``: it failed
            as often as it may.
        values: in the unit people read, by the name that the search has for them.
        errors: standard errors of the values, where they are known.
    """

    kind: Kind
    values: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as a decision holds it."""
        return {"kind": self.kind, "values": dict(self.values), "errors": dict(self.errors)}

    @cached_property
    def canonical(self) -> str:
        """``as_json`` as canonical JSON; made once, for each decision hashes all that it was given."""
        return canonical_json(self.as_json())

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Outcome:
        """Return what ``as_json`` wrote."""
        return cls(content["kind"], content["values"], content["errors"])


def wanted_names(search: Search) -> tuple[str, ...]:
    """Return the benchmarks and measures that a search looks at, its objectives first."""
    return tuple(dict.fromkeys((*objective_names(search), *search.constraints)))


def objective_names(search: Search) -> tuple[str, ...]:
    """Return the benchmarks and measures that a search's objectives are made of."""
    written = search.objective.maximize or search.objective.minimize
    return written.mean if isinstance(written, Mean) else tuple(written or ())


class Reader:
    """Reads outcomes from records.

    Args:
        names: what a search looks at: a benchmark's name, or with its shots (``mmlu-5shot``), or a measure.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)

    def problems(self, asked: Iterable[Requirement], place: Callable[[str], str]) -> list[Problem]:
        """Return the names that nothing which is asked of a cell gives; ``place`` says where one is written."""
        known = list(asked)
        called = Counter(_shortest_name(item) for item in known)
        given = (item for item in known if item.is_benchmark or item.measure in MEASURES)
        choices = [item.label if called[short := _shortest_name(item)] > 1 else short for item in given]
        found = []
        for name in self.names:
            count = len([item for item in known if _is_called(item, name)])
            if count == 0 or (name not in MEASURES and name in {item.measure for item in known}):
                found.append(Problem(place(name), "no benchmark or measure of the sweep gives it", name, choices))
            elif count > 1:
                found.append(Problem(place(name), f"{count} benchmarks have this name; say which", name, choices))
        return found

    def requirements(self, asked: Iterable[Requirement]) -> list[str]:
        """Return the ids of what gives the names, sorted: what they mean, whatever they are called."""
        known = list(asked)
        return sorted(item.id for item in known if any(_is_called(item, name) for name in self.names))

    def is_void(self, record: Record, asked: Iterable[Requirement]) -> bool:
        """Whether a record answers what a name is of, but without a value: none is to come."""
        return any(
            _is_called(item, name) and is_answered(item.id, record.answers) and _value(record, item) is None
            for item in asked
            for name in self.names
        )

    def was_tried(self, record: Record, asked: Iterable[Requirement]) -> bool:
        """Whether a record says that what gives the names was tried in vain."""
        if record.status is Status.FAILED:
            return not record.is_invalidated
        return any(why != AWAITED and RETRAIN not in why for why in self._reasons(record, asked))

    def needs_retraining(self, record: Record, asked: Iterable[Requirement]) -> bool:
        """Whether a record says that what gives the names needs weights that are gone."""
        return any(RETRAIN in why for why in self._reasons(record, asked))

    def _reasons(self, record: Record, asked: Iterable[Requirement]) -> list[str]:
        """Return why what gives the names is missing, as far as a record says so."""
        labels = [item.label for item in asked if any(_is_called(item, name) for name in self.names)]
        return [record.missing[label] for label in labels if label in record.missing]

    def outcome(self, record: Record, asked: Iterable[Requirement]) -> Outcome | None:
        """Return what came of a cell; None where it lacks a value that may still come."""
        if record.status is Status.DIVERGED:
            return Outcome("diverged")
        known = list(asked)
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        for name in self.names:
            item = next((item for item in known if _is_called(item, name)), None)
            found = None if item is None else _value(record, item)
            if found is None:
                return None
            values[name] = found[0]
            if math.isfinite(found[1]):
                errors[name] = found[1]
        return Outcome("complete", values, errors)


def _is_called(item: Requirement, name: str) -> bool:
    return name in (item.label, _shortest_name(item))


def _shortest_name(item: Requirement) -> str:
    """Return a measure's name, or a benchmark's without its shots."""
    if item.judged is not None:
        return item.judged.title
    return item.measure or (item.label if item.task is None else title(item.task))


def _value(record: Record, item: Requirement) -> tuple[float, float] | None:
    """Return a value and its standard error (NaN where not known), in the unit people read."""
    if item.measure is not None:
        value: Any = record.measures.get(item.measure)
        for step in MEASURES[item.measure]:
            value = value.get(step) if isinstance(value, dict) else None
        return (float(value), math.nan) if isinstance(value, int | float) else None
    scores = next((one for one in record.scores.values() if is_answered(item.id, (one.asked,))), None)
    return None if scores is None else _headline(scores)


def _headline(scores: BenchmarkScores) -> tuple[float, float] | None:
    """Return the mean over what stands for a benchmark."""
    found = []
    for kind, name in sorted(headline(scores)):
        metrics: Mapping[str, Score] = (scores.groups if kind == "group" else scores.tasks)[name]
        key = primary_metric(metrics)
        if key is None or metrics[key].value is None:
            return None
        factor = scale(split(key)[0])
        value, error = metrics[key].value, metrics[key].stderr
        found.append((factor * float(value or 0.0), math.nan if error is None else factor * error))
    if not found:
        return None
    mean = math.fsum(value for value, _ in found) / len(found)
    return mean, math.sqrt(math.fsum(error**2 for _, error in found)) / len(found)


def taken_s(record: Record, scoring_gpus: int) -> tuple[float, float]:
    """Return the seconds that a cell's training and its scoring took, times the GPUs where there were any.

    Args:
        scoring_gpus: that score a cell, which its record does not tell; 0 without.
    """
    layout = record.training.get("layout")
    gpus = layout.get("gpus") if isinstance(layout, dict) else 0
    trained, scored = record.training.get("seconds"), record.cost.get("seconds")
    parts = scored.values() if isinstance(scored, dict) else ()
    scored_s = [value for value in parts if isinstance(value, int | float)]
    many = gpus if isinstance(gpus, int) and gpus else 1
    trained_s = many * float(trained) if isinstance(trained, int | float) else 0.0
    return trained_s, max(1, scoring_gpus) * float(sum(scored_s))
