"""Hooks (``worker_process_setup_hook``) for a Ray on which certain processes die, as those do that lack memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from commands import Fault, install, kill

CELL = "DEADLY_CELL"  # the variable that names a cell
SIGNAL = "DEADLY_SIGNAL"  # the variable that says what workers get
TITLE = "DEADLY_TITLE"  # the variable that says how their titles begin: a lane's, if there is none


def scorers() -> None:
    """Whoever writes an answer of the cell is killed."""
    install(Fault(rf"/cells/{os.environ[CELL]}/responses/", kill))


def workers() -> None:
    """Whoever becomes such a worker gets the signal: SIGKILL, or SIGSTOP for a process that never comes up."""
    threading.Thread(target=_strike_worker, daemon=True).start()


def _strike_worker() -> None:
    title, begins = Path("/proc/self/cmdline"), os.environ.get(TITLE, "ray::RayTrainWorker")
    while not title.read_text(errors="replace").startswith(begins):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.Signals[os.environ[SIGNAL]])
