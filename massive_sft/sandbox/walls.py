"""Which walls this machine allows, strongest first, and the command that begins inside each."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Literal

from massive_sft.sandbox import guest

GUEST = Path(guest.__file__)
Wall = Literal["bubblewrap", "namespaces", "rlimits"]
STRONG: tuple[Wall, ...] = ("bubblewrap", "namespaces")
# Where the interpreter's libraries are, beside its own folder.
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")


@cache
def readable() -> tuple[str, ...]:
    """Return what a program may read: the interpreter with its standard library, the system's libraries, the guest."""
    own = [str(Path(sys.base_prefix).resolve()), str(Path(sys.base_exec_prefix).resolve()), str(GUEST)]
    places = [path for path in dict.fromkeys([*_SYSTEM, *own]) if os.path.exists(path)]
    return tuple(path for path in places if not any(path.startswith(f"{other}/") for other in places))


def command(wall: Wall) -> list[str]:
    """Return the command that runs the guest inside a wall; the guest puts up what the command does not."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-E", "-B", str(GUEST)]
    return [*_bubblewrap(), *python] if wall == "bubblewrap" else python


def _bubblewrap() -> list[str]:
    binds = [word for path in readable() for word in ("--ro-bind", path, path)]
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534"),
        *("--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox"),
        *(
            *binds,
            "--dev",
            "/dev",
            "--size",
            str(guest.TMPFS_BYTES),
            "--tmpfs",
            guest.SCRATCH,
            "--remount-ro",
            "/",
            "--chdir",
            guest.SCRATCH,
        ),
        "--",
    ]
