"""A folder that all processes of one test session share, and what the first of them that needs it makes there."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PLACE = "TESTS_SHARED"  # the variable that tells the processes that pytest starts where it is


def shared_folder() -> Path:
    """Return the session's folder; the process that asks first makes it, and removes it when it ends."""
    if PLACE not in os.environ:
        folder, maker = tempfile.mkdtemp(prefix="massive-sft-tests-"), os.getpid()
        os.environ[PLACE] = folder
        # Not a fork of it that ends before.
        atexit.register(lambda: os.getpid() == maker and shutil.rmtree(folder, ignore_errors=True))
    return Path(os.environ[PLACE])


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the session that ``make`` has filled, in whichever process asked first; others wait for it.

    What is in there is for reading. Where ``make`` fails, the next who asks tries anew.
    """
    folder = shared_folder() / name
    is_made = folder.with_suffix(".made")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder
