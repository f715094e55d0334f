"""What the verbs share: their options, and how they print."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer
from rich.console import Console

from massive_sft.api.plan import plan, sound_plan
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import DISK_FULL
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan

PIPE_WIDTH = 200  # columns of output that is no terminal's

File = Annotated[Path, typer.Argument(help="The sweep file.", show_default=False)]
Sweep = Annotated[
    Path | None,
    typer.Option(
        "--sweep",
        help="The sweep file or storage root that has the cell; without it those of this folder and its sweeps/.",
        show_default=False,
    ),
]
CellId = Annotated[str, typer.Argument(help="A cell's id, or its beginning.", show_default=False)]
Overlays = Annotated[
    list[Path] | None,
    typer.Option("--overlay", metavar="<path>", help="A file merged over the sweep file; repeatable."),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        help='Only these cells: "model=a|b and method=lora and epoch!=1", by coordinates, status, cell or trajectory. '
        "A training is done whole, for all of its epochs.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def console(is_error: bool = False) -> Console:
    """Return where a verb prints: names from the user stand as they are; a pipe has room for whole tables."""
    stream = _standard("stderr" if is_error else "stdout")
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=is_error, width=width, markup=False, emoji=False, highlight=False)


def _standard(name: str) -> TextIO:
    """Return ``sys.stdout`` or ``sys.stderr``. One that was closed from the start (``>&-``) leads nowhere from now on.

    Else the next file that is opened would get its number, and with it what libraries print.
    """
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - stays open
    return cast(TextIO, getattr(sys, name))


@contextlib.contextmanager
def report_write_errors(place: str, path: Path) -> Iterator[None]:
    """Say in a sentence that a path which the user named cannot be written.

    Raises:
        InvalidInput: whatever the system says against it, but for a full disk, which is none of the user's mistakes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InvalidInput(Problem(place, f"cannot be written ({error.strerror})", str(path))) from error


def print_json(value: object) -> None:
    """Print JSON. Raises ValueError for NaN and infinities, which are none."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def load_plan(file: Path, overlays: Sequence[Path] | None) -> Plan:
    """Return a sweep file's plan. Raises InvalidInput with everything that is wrong with the file."""
    return plan(file, overlays or ())


def load_sound_plan(file: Path, overlays: Sequence[Path] | None) -> Plan:
    """Return a sweep file's plan as ``load_plan``, for a verb that acts on it (``api.plan.sound_plan``)."""
    return sound_plan(file, overlays or ())


def read_plan(file: Path, overlays: Sequence[Path] | None) -> tuple[Plan, Ledger]:
    """Return a sweep file's plan and its ledger, open for reading.

    Raises:
        InvalidInput: the file is wrong, or nothing was ever run into its storage root.
    """
    found = load_sound_plan(file, overlays)
    return found, found.open_ledger(create=False)
