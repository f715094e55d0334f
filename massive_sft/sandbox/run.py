"""Runs a program behind walls and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from threading import BoundedSemaphore
from typing import Any, Literal

from massive_sft.core.cores import usable_cores
from massive_sft.core.errors import MassiveSFTError
from massive_sft.sandbox.walls import STRONG, Wall, command, readable

Choice = Literal["strongest", "rlimits", "none"]
Ending = Literal["passed", "failed", "timed out", "killed"]
_VERDICT_BYTES = 1024
_LOOK_S = 0.5  # of time on the clock that counts at most between two looks at a program
_CORES = usable_cores()
_room = BoundedSemaphore(_CORES)  # of this process: several threads may have programs to run


class NoWall(MassiveSFTError):
    """This machine does not wall a program in as it must be."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_s: seconds of CPU time, whole ones, so that a busy machine fails no program.
        wall_s: seconds on the clock, for a program that waits; those in which this process stood still do not count.
        memory_bytes: of address space.
        file_bytes: of one file.
        open_files: at most.
        processes: threads, where no filter of system calls refuses processes.
    """

    cpu_s: int = 3
    wall_s: float = 20.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64
    processes: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ending: ``passed`` where it ran to its end.
        detail: the error that ended it, with its text; empty where it passed.
        walls: what it was walled in by, where it passed.
    """

    ending: Ending
    detail: str = ""
    walls: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.ending == "passed"


def run(program: str, wall: Wall, limits: Limits | None = None) -> Outcome:
    """Run a program in an interpreter of its own. Its output goes nowhere, its input is empty, it has no environment.

    A program passes if it runs to its end: then a token comes back that only the guest knows. One that exits earlier,
    with whatever code, has not passed. What is not held: a program that searches the interpreter that it runs in for
    the token. It deceives its own score; the walls hold all the same.

    Raises:
        NoWall: the wall cannot be put up here.
    """
    limits, token = limits or Limits(), secrets.token_hex(16)
    job: dict[str, Any] = {"program": program, "token": token, "wall": wall, "readable": readable()}
    job |= {"limits": asdict(limits), "parent": os.getpid()}
    with tempfile.TemporaryFile("w+") as text:
        json.dump(job, text)
        text.seek(0)
        process = subprocess.Popen(
            command(wall), stdin=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        with process:
            verdict, ended = _read(process, limits.wall_s)
    return _outcome(verdict, ended, process.returncode, token)


def _read(process: subprocess.Popen[bytes], wall_s: float) -> tuple[bytes, bool]:
    """Return what the guest said, and whether the program ended by itself. All of its processes have ended then.

    A job that a scheduler suspends stands still with its programs: what passes then is not theirs.
    """
    assert process.stdout is not None
    said, left, poll = b"", wall_s, select.poll()
    poll.register(process.stdout, select.POLLIN)
    try:
        while left > 0 and len(said) <= _VERDICT_BYTES:
            began, look = time.monotonic(), min(left, _LOOK_S)
            if poll.poll(look * 1000):
                part = os.read(process.stdout.fileno(), 4096)
                if not part:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(left)
                        return said, True
                    break
                said += part
            left -= min(time.monotonic() - began, look)
        return said, False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _outcome(verdict: bytes, ended: bool, code: int, token: str) -> Outcome:
    text = verdict[:_VERDICT_BYTES].decode(errors="replace")
    if text.startswith("no wall: "):
        raise NoWall(text.removeprefix("no wall: "))
    if text.startswith(token):
        return Outcome("passed", walls=tuple(text.split()[1:]))
    if len(verdict) > _VERDICT_BYTES:
        return Outcome("failed", "it wrote where its verdict goes")
    if not ended or abs(code) % 128 == signal.SIGXCPU:
        return Outcome("timed out", "the time was up")
    if text:
        return Outcome("failed", text)
    if code == 0:
        return Outcome("failed", "it ended before its end")
    return Outcome("killed", f"it ended with code {code}")


def run_all(programs: Iterable[str], wall: Wall, limits: Limits | None = None) -> list[Outcome]:
    """Run programs, as many at once as there are CPUs, whoever asks; their outcomes in order. Raises NoWall."""

    def in_turn(program: str) -> Outcome:
        with _room:
            return run(program, wall, limits)

    with ThreadPoolExecutor(_CORES) as pool:
        return list(pool.map(in_turn, programs))


@cache
def _lack(wall: Wall) -> str:
    """Return why a wall cannot be put up here; empty where it can."""
    try:
        outcome = run("pass", wall)
    except (NoWall, OSError) as error:
        return str(error)
    return "" if outcome.passed else outcome.detail


def choose(choice: Choice) -> Wall:
    """Return the strongest wall that this machine allows; ``rlimits`` only where less than the strongest was chosen.

    Raises:
        NoWall: there is none as strong as it must be; with the reason for each.
    """
    walls: tuple[Wall, ...] = STRONG if choice == "strongest" else (*STRONG, "rlimits")
    for wall in walls:
        if not _lack(wall):
            return wall
    reasons = "; ".join(f"{wall}: {_lack(wall)}" for wall in walls)
    raise NoWall(f"code that a model wrote cannot be walled in on this machine ({reasons})")
