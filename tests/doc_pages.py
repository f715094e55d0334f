"""Follows a page of docs/ as a reader would, from top to bottom, in one folder.

What a fenced block is for stands behind its language:

- ``console``: lines that begin with ``$ `` are commands, what stands below one is what it prints; ``...`` stands for
  any text, white space for any other. A command that prints nothing, as far as the page says, must succeed.
- ``console measured``: likewise, but what was measured differs between machines: any number stands for any other.
- ``python``: code, in one namespace for the whole page. A ``text`` block right behind it is what it prints.
- any language and a name, such as ``yaml my.yaml``: a file of that name.
- everything else, such as ``sh``, is shown alone: it needs what a test has not (a GPU, a cluster, the hub).
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import MassiveSFTError

DOCS = Path(__file__).parent.parent / "docs"
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MEASURED = "measured"
NUMBER = re.compile(r"[-+]?\d[\d.]*(e-?\d+)?")
SHELL = re.compile(r"[|<>&;*$()`]")  # what makes a command line more than words


@dataclass(frozen=True)
class Block:
    """A fenced block: ``line`` is that of its fence; ``behind`` says whether it follows another one at once."""

    language: str
    name: str
    text: str
    line: int
    behind: bool


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's fenced blocks."""
    text, end = page.read_text(encoding="utf-8"), 0
    for match in re.finditer(r"^```(\w*) ?(\S*)\n(.*?)^```$", text, re.M | re.S):
        behind = not text[end : match.start()].strip()
        yield Block(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 1, behind)
        end = match.end()


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a ``console`` block with what it is to print."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def follow(page: Path, folder: Path) -> None:
    """Do what a page says, in a folder. Raises AssertionError where something else is printed than it says."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    printed: str | None = None  # by the code above
    with contextlib.chdir(folder):
        for block in blocks(page):
            place = f"{page.name}:{block.line}"
            if block.language == "text" and block.behind and printed is not None:
                _compare(place, block.text, 0, printed)
            printed = None
            if block.language == "console":
                for command, wanted in commands(block):
                    _compare(f"{place}: $ {command}", wanted, *_call(command), measured=block.name == MEASURED)
            elif block.name:
                Path(block.name).parent.mkdir(parents=True, exist_ok=True)
                Path(block.name).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as stream:
                    exec(compile("\n" * block.line + block.text, page.name, "exec"), namespace)
                printed = stream.getvalue()


def _call(command: str) -> tuple[int, str]:
    """Run a command line; ``massive-sft`` in this process, where what it imports is imported already."""
    if not command.startswith("massive-sft ") or SHELL.search(command):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command], env=os.environ | {"PATH": path}, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout
    called = CliRunner().invoke(app, shlex.split(command)[1:])
    if isinstance(called.exception, MassiveSFTError):
        return called.exception.exit_code, f"{called.output}\n{called.exception}"
    if called.exception is not None and not isinstance(called.exception, SystemExit):
        raise called.exception
    return called.exit_code, called.output


def _compare(place: str, wanted: str, code: int, printed: str, measured: bool = False) -> None:
    if measured:
        wanted, printed = (NUMBER.sub("#", text) for text in (wanted, printed))
    if not wanted.strip():
        assert code == 0, f"{place} ended with {code}:\n{printed}"
    elif not doctest.OutputChecker().check_output(wanted, printed, LIKE):
        raise AssertionError(f"{place} prints\n{printed}\nwhere the page has\n{wanted}")
