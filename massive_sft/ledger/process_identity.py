"""Whether the process that took a lease is still there: named so that it cannot be taken for another."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def process_identity(pid: int) -> dict[str, Any]:
    """Name a process so that it cannot be taken for another; a value is None where the system does not tell."""
    return {
        "host": socket.gethostname(),
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
        "pid": pid,
        "started": _started(pid),
    }


def is_running(identity: Any) -> bool | None:
    """Return whether a process goes on, by what ``process_identity`` said of it; None where nobody can know."""
    if not isinstance(identity, dict) or None in identity.values() or type(identity.get("pid")) is not int:
        return None
    here = process_identity(identity["pid"])
    if any(here[key] != identity.get(key) for key in ("host", "boot", "pid_namespace")):
        return None
    if here["started"] is None and _is_hidden(identity["pid"]):
        return None
    return here == identity


def _started(pid: int) -> str | None:
    """Return when a process started (clock ticks since boot), None when it is no more or cannot be known."""
    stat = _first_line(f"/proc/{pid}/stat")
    if stat is None:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] in "ZX" else fields[19]


def _is_hidden(pid: int) -> bool:
    """Return whether a process is there of which /proc tells this user nothing (its mount option ``hidepid``)."""
    if _first_line(f"/proc/{pid}/stat") is not None:
        return False
    try:
        os.kill(pid, 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
