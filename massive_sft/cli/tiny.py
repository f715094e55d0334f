"""``tiny``: the offline world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from massive_sft.cli.options import console


def tiny(
    folder: Annotated[Path, typer.Argument(help="Where to put it; made if missing.")],
    seed: Annotated[int, typer.Option(help="Of the invented data.")] = 0,
) -> None:
    """Make an offline world: two base models, four datasets, benchmarks and a sweep file over them."""
    from massive_sft.tiny import build

    out, world = console(), build(folder, seed)
    out.print(
        f"{len(world.models)} models, {len(world.datasets)} datasets and {len(world.tasks)} benchmarks in {world.root}"
    )
    if world.is_edited:
        out.print(f"{world.sweep} is there with a text of its own and stays as it is")
    out.print(f"next: massive-sft run {world.sweep}")
