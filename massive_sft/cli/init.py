"""``init``: a commented sweep file to start from; ``schema``: the JSON Schema by which editors complete and mark it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli.options import console, print_json, report_write_errors
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import write_bytes

SCHEMA = "sweep.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"  # read by editors
MACHINES = ("laptop", "gpu", "cluster")  # what a sweep is to run on; each has a file of its name
_SWEEPS = Path(__file__).parent / "sweeps"


def init(
    file: Annotated[Path, typer.Argument(help="The sweep file to write.", show_default=False)],
    machine: Annotated[
        str,
        typer.Option(
            "--for",
            metavar=f"<{'|'.join(MACHINES)}>",
            autocompletion=lambda: list(MACHINES),
            help="What it is to run on.",
        ),
    ] = MACHINES[0],
) -> None:
    """Write a commented sweep file to start from, and beside it the JSON Schema by which editors complete it."""
    if machine not in MACHINES:
        raise InvalidInput(Problem("--for", "must be one of the valid values", machine, MACHINES))
    if file.exists():
        raise InvalidInput(Problem("file", "is there already; init overwrites nothing", str(file)))
    with report_write_errors("file", file):
        write_bytes(file, MODELINE.encode() + (_SWEEPS / f"{machine}.yaml").read_bytes())
        write_bytes(file.parent / SCHEMA, _schema_text().encode())
    console().print(f"{file} and {file.parent / SCHEMA}; next: massive-sft plan {file}", soft_wrap=True)


def schema() -> None:
    """Print the JSON Schema of sweep files, by which editors complete and mark them."""
    from massive_sft.sweep.json_schema import json_schema

    print_json(json_schema())


def _schema_text() -> str:
    from massive_sft.sweep.json_schema import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
