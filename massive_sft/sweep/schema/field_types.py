"""The kinds of values in a sweep file: strict numbers and texts, and lists that one value may stand for.

Strict: ``true`` is no number, ``"32"`` is text. A whole number may stand for a fraction, never the reverse.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_COUNT = 10**12  # of whatever is counted: beyond it a number is a slip of the keyboard
MAX_EPOCHS = 10_000
MAX_DEVICES = 100_000
MAX_RANK = 65_536
MAX_NAME_BYTES = 200  # bytes of UTF-8: a file's name has at most 255, and something is put before and after


def _integer(value: Any) -> Any:
    """Literal numbers compare by ``==``, by which ``true`` is 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be an integer")
    return value


def _integer_or_text(value: Any) -> Any:
    """Likewise; a text is compared with the literals that are texts."""
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError("must be an integer or a text")
    return value


def as_tuple(value: Any) -> Any:
    """Return a list of one for a value that stands for it."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def as_epochs(value: Any) -> Any:
    """Return the epochs of a range such as ``1..10``, or of a list that one epoch may stand for. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", value)
        if not match or int(match[1]) > int(match[2]):
            raise ValueError("must be an epoch, a list of epochs or a range such as 1..10")
        if int(match[2]) > MAX_EPOCHS:
            raise ValueError(f"must end by epoch {MAX_EPOCHS}")
        return tuple(range(int(match[1]), int(match[2]) + 1))
    return as_tuple(value)


def as_half_width(value: Any) -> Any:
    """Return the number behind a ``±``, which people write before a half-width. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"± ?(\d{1,9}(\.\d{1,9})?)", value)
    if not match:
        raise ValueError("must be a number of points such as ±2 or 2")
    return float(match[1])


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"must name each once, but {', '.join(twice)} is there twice")
    return values


def _below(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError("must lie within the folder: no absolute name, no ..")
    return name


Distinct = AfterValidator(_distinct)  # goes behind a tuple
Text = Annotated[str, Field(min_length=1)]
# Of the hub: ``name`` or ``owner/name``; a branch, tag or commit. Both become parts of paths.
_HUB_NAME = r"^([\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}$"
_HUB_REVISION = r"^[\w-][\w.+-]*(/[\w-][\w.+-]*)*$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_SIZE = r"^\d+(\.\d+)? ?[kMGT]?B$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
AGAINST_BASE = r"^base( ?[+-] ?\d+(\.\d+)?)?$"  # the score of the base model, and so many points more or less
HubName = Annotated[Text, Field(pattern=_HUB_NAME)]
HubRevision = Annotated[Text, Field(pattern=_HUB_REVISION, max_length=MAX_NAME_BYTES)]
Name = Annotated[str, Field(pattern=_NAME, max_length=MAX_NAME_BYTES)]
Size = Annotated[str, Field(pattern=_SIZE)]
Variable = Annotated[Text, Field(pattern=VARIABLE)]
PATTERN_RULES = {  # what people are told who broke one
    _HUB_NAME: "must be an id of the hub, `name` or `owner/name`",
    _HUB_REVISION: "must be a branch, a tag or a commit",
    _NAME: "must be of the letters a to z and A to Z, digits, `.`, `_` and `-`, a letter or digit first",
    _SIZE: "must be a size such as 500GB",
    VARIABLE: "must be the name of an environment variable",
    AGAINST_BASE: "must be a number, or one against the base model's score such as `base - 1.0`",
}
FileName = Annotated[Text, AfterValidator(_below)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
AboveZero = Annotated[Number, Field(gt=0)]
HalfWidth = Annotated[float, Field(strict=True, gt=0, lt=100), BeforeValidator(as_half_width)]
# Of training in single precision: beyond these a number is 0 or infinite there, or a slip of the keyboard.
Rate = Annotated[Number, Field(ge=1e-30, le=1000)]
Weight = Annotated[Number, Field(gt=0, le=MAX_COUNT)]
Positive = Annotated[int, Field(strict=True, gt=0, le=MAX_COUNT)]
NotNegative = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
Devices = Annotated[int, Field(strict=True, ge=0, le=MAX_DEVICES)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Epoch = Annotated[int, Field(strict=True, gt=0, le=MAX_EPOCHS)]
Integer = BeforeValidator(_integer)  # goes before a Literal of numbers
IntegerOrText = BeforeValidator(_integer_or_text)  # likewise, with texts among them

OneOrMore = BeforeValidator(as_tuple)  # goes before a tuple: one value stands for a list of it
Strings = Annotated[tuple[Text, ...], OneOrMore, Field(min_length=1), Distinct]
Epochs = Annotated[tuple[Epoch, ...], BeforeValidator(as_epochs), Field(min_length=1), Distinct]

# A column of a record: a path such as ``instances[0].output``, or its number where there is no header.
ColumnPath = Text | NotNegative
ColumnPaths = Annotated[tuple[ColumnPath, ...], OneOrMore, Field(min_length=1)]
