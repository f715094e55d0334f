"""``--where``: which cells of a sweep a verb is about, e.g. ``model=tiny-llama and method=lora and epoch!=1``.

Conditions are joined by ``and``. Each names a key, ``=`` or ``!=``, and one value or several with ``|`` between them:
``=`` holds for a cell that has one of them, ``!=`` for a cell that has none. A value with spaces, ``|`` or quotes is
quoted, ``"w/o a"`` or ``'it''s'``, its own kind of quote doubled. The keys are the coordinates by which cells are
called (``mixture`` is what JSON output and records keep as ``data``, which is understood too), ``status``, and ``cell``
and ``trajectory``: ids, or their beginnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.record import Status
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.sweep.cell import Coordinates
from massive_sft.sweep.schema import Setting

OPTION = "--where"
IDS = ("cell", "trajectory")
FIELDS = {"mixture" if name == "data" else name: name for name in Coordinates._fields}
KEYS = (*FIELDS, "status", *IDS)
# How a coordinate without a value is written.
_ABSENT = {"size": "all", "horizon": "none", "seed": "none"}
_NUMBERS = ("size", "horizon", "epoch", "seed")

_KEY = re.compile(r"\s*([^\s=!|'\"]+)\s*(!=|=)\s*")
_VALUE = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^\s|'"]+))\s*""")
_AND = re.compile(r"\s*and(?=\s|$)", re.IGNORECASE)
_BAR = re.compile(r"\|")


@dataclass(frozen=True)
class Clause:
    """One condition: ``key`` is (or, ``negated``, is not) one of ``values``, compared as text."""

    key: str
    negated: bool
    values: tuple[str, ...]

    def __call__(self, plan: CellPlan) -> bool:
        return any(_is(plan, self.key, value) for value in self.values) != self.negated


@dataclass(frozen=True)
class Selection:
    """Conditions, all of which a cell must meet. Called with a ``CellPlan``, it returns whether that one does."""

    conditions: tuple[Clause, ...] = ()

    def __call__(self, plan: CellPlan) -> bool:
        return all(condition(plan) for condition in self.conditions)


def parse_where(text: str | None) -> Selection:
    """Return the conditions in ``text``; without a text, those that every cell meets.

    Raises:
        InvalidInput: an unknown key, a value that the key cannot have, or no conditions at all; with every problem
            up to the first place where the text cannot be read on.
    """
    if text is None:
        return Selection()
    conditions: list[Clause] = []
    problems: list[Problem] = []
    position = 0
    while True:
        condition, position = _condition(text, position, problems)
        if condition is not None:
            conditions.append(condition)
            problems += _problems(condition)
        if position < 0 or position == len(text):
            break
        joined = _AND.match(text, position)
        if joined is None:
            problems.append(_unreadable("must go on with `and`, the only way to join conditions", text, position))
            break
        position = joined.end()
    if problems:
        raise InvalidInput(problems)
    return Selection(tuple(conditions))


def _condition(text: str, position: int, problems: list[Problem]) -> tuple[Clause | None, int]:
    """Read one condition; return it and where it ends, or None and -1 with a problem added."""
    head = _KEY.match(text, position)
    if head is None:
        problems.append(_unreadable("must be KEY=VALUE or KEY!=VALUE", text, position, KEYS))
        return None, -1
    values: list[str] = []
    position = head.end()
    while True:
        match = _VALUE.match(text, position)
        if match is None:
            problems.append(_unreadable(f'needs a value after {head[0].strip()} (an empty one is "")', text, position))
            return None, -1
        double, single, bare = match.groups()
        quoted = double.replace('""', '"') if double is not None else single and single.replace("''", "'")
        values.append(bare if bare is not None else quoted or "")
        position = match.end()
        bar = _BAR.match(text, position)
        if bar is None:
            key = "mixture" if head[1] == "data" else head[1]
            return Clause(key, head[2] == "!=", tuple(values)), position
        position = bar.end()


def _unreadable(rule: str, text: str, position: int, choices: Iterable[str] = ()) -> Problem:
    return Problem(f"{OPTION}, character {position + 1}", rule, text[position:], tuple(choices))


def _problems(condition: Clause) -> Iterable[Problem]:
    place = f"{OPTION}: {condition.key}"
    if condition.key not in KEYS:
        value = "|".join(condition.values)
        varied = f"; a setting that varies is in variant: variant={condition.key}={value}"
        rule = "unknown key" + (varied if condition.key in Setting.model_fields else "")
        yield Problem(OPTION, rule, condition.key, KEYS)
    for value in condition.values:
        if condition.key == "status" and value.upper() not in Status.__members__:
            yield Problem(place, "must be a status", value, tuple(Status.__members__))
        elif condition.key in IDS and not re.fullmatch(r"[0-9a-f]+", value):
            yield Problem(place, "must be an id (digits and a to f) or its beginning", value)
        elif condition.key in _NUMBERS and not value.isdecimal() and value != _ABSENT.get(condition.key):
            also = f" or {_ABSENT[condition.key]}" if condition.key in _ABSENT else ""
            yield Problem(place, f"must be a whole number{also}", value)


def _text(plan: CellPlan, key: str) -> str:
    if key == "cell":
        return plan.cell.id
    if key == "trajectory":
        return plan.cell.recipe.id if plan.cell.recipe else ""
    if key == "status":
        return str(plan.status)
    value = getattr(plan.cell.coordinates, FIELDS[key])
    return _ABSENT[key] if value is None else str(value)


def _is(plan: CellPlan, key: str, value: str) -> bool:
    text = _text(plan, key)
    if key in IDS:
        return text.startswith(value)
    if key in _NUMBERS and value.isdecimal():
        return text == str(int(value))
    return text == (value.upper() if key == "status" else value)


def select_cells(plan: Plan, where: Selection) -> Plan:
    """Return the plan with the matching cells alone, and the runs that have one.

    A run keeps its whole trajectory: it is trained as the sweep says, so that its other cells find it trained.
    That no cell matches is no error.

    Raises:
        InvalidInput: a value that no cell of the sweep has, so that a slip of the keyboard is no empty answer.
    """
    problems = [problem for condition in where.conditions for problem in _foreign(plan, condition)]
    if problems:
        raise InvalidInput(problems)
    runs = (replace(run, cells=tuple(filter(where, run.cells))) for run in plan.runs)
    return replace(plan, runs=tuple(run for run in runs if run.cells), base=tuple(filter(where, plan.base)))


def _foreign(plan: Plan, condition: Clause) -> Iterable[Problem]:
    """Yield the values that no cell of the plan has. Which statuses there are changes from one minute to the next."""
    if condition.key == "status":
        return
    for value in condition.values:
        if not any(_is(plan_of, condition.key, value) for plan_of in plan.cells):
            known = () if condition.key in IDS else tuple({_text(item, condition.key): None for item in plan.cells})
            is_entry = condition.key == "mixture" and value in plan.sweep.file.mixtures.entries
            rule = "is an entry whose mixtures have names of their own" if is_entry else "no cell of the sweep has it"
            yield Problem(f"{OPTION}: {condition.key}", rule, value, known)
