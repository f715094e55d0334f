"""Ask a job's command to end, on the node where it runs: a job that ``job --stop`` runs before the cluster's own stop.

Ray's stop is SIGTERM and, ``RAY_JOB_STOP_WAIT_TIME_S`` later (3 s unless it was set where Ray was started), SIGKILL:
too soon for a checkpoint. Where that is set to enough, nothing is done here; else the command gets a SIGTERM that no
SIGKILL follows. ``python -m massive_sft.scheduling.end_request JOB`` prints what it did as one word.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
ENOUGH_S = 60  # seconds that the step in hand and a small model's checkpoint may take
PREFIX = "end request: "  # of the answer's line
WAITS, ASKED, NOT_FOUND = "waits", "asked", "not-found"
SHELLS = frozenset({"sh", "bash", "dash"})
NAME = b"RAY_JOB_CONFIG_JSON_ENV_VAR="  # Ray sets it for the command of a job and what it starts itself


def request_end(job: str, environment: dict[str, str], proc: Path = Path("/proc")) -> str:
    """Ask a job's processes on this machine to end, unless the cluster waits for them; return what was done."""
    with suppress(ValueError):
        if int(environment.get(WAIT, "")) >= ENOUGH_S:
            return WAITS
    found = list(_processes(job, proc))
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    return ASKED if found else NOT_FOUND


def find_answer(printed: str) -> str | None:
    """Return what such a job did, in what it printed; None where it did not say."""
    lines = (line.removeprefix(PREFIX) for line in printed.splitlines() if line.startswith(PREFIX))
    return next(lines, None)


def _processes(job: str, proc: Path) -> Iterator[int]:
    """Yield the processes of a job's command, but for the shell that Ray waits for; Ray's workers are none of them."""
    for entry in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (entry / "comm").read_text().strip() in SHELLS:
                continue  # the job would count as ended with it
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(text.startswith(NAME) and f'"{job}"'.encode() in text for text in variables):
                yield int(entry.name)


if __name__ == "__main__":
    print(PREFIX + request_end(sys.argv[1], dict(os.environ)))  # noqa: T201
