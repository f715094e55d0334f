"""The processes that a test started, and what is left of them afterwards. It needs Linux."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of every orphan among its descendants, so that none gets out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def is_healthy(port: int) -> bool:
    """Return whether a tracking server of this machine answers on a port, and that it is well."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def free_port() -> int:
    """Return a port for a server that is killed and started again: it lies below those that are given out by chance."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(lowest - 8000, lowest), 50):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port below {lowest} is free")


@dataclass(frozen=True)
class Process:
    """A process; ``title`` is its command line, where Ray writes what an actor is."""

    pid: int
    parent: int
    title: str


def descendants() -> list[Process]:
    """Return all processes below this one that are not dead already."""
    found: dict[int, Process] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[:2]
            title = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state not in "ZX":
                found[int(name)] = Process(int(name), int(parent), title.strip())
    ours, more = {os.getpid()}, True
    while more:
        below = {pid for pid, process in found.items() if process.parent in ours}
        more = not below <= ours
        ours |= below
    return [found[pid] for pid in ours - {os.getpid()} if pid in found]


def started(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; None when it is no more."""
    try:
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def titled(*parts: str) -> list[Process]:
    """Return the descendants whose title holds one of these."""
    return [process for process in descendants() if any(part in process.title for part in parts)]


def left_after(seconds: float) -> list[Process]:
    """Return the descendants that are still there when so many seconds have gone by; at once when there are none."""
    deadline = time.monotonic() + seconds
    while (left := descendants()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
