"""Runs inside the sandbox, as a script: walls its own process in, then executes one program.

The job, JSON on standard input: ``program``, ``token``, ``wall``, ``readable`` (paths), ``limits``, ``parent`` (its
process). On standard output goes the token once the program has run to its end, and nothing else that counts: one that
ends early, however it does, has not passed. Its own output goes nowhere. Standard library alone, for the interpreter is
started without site-packages. x86-64 and AArch64 have the filter of system calls; elsewhere the namespaces alone hold.

Sources: capabilities(7), namespaces(7), pivot_root(2), landlock(7), seccomp(2), and the kernel's headers for numbers.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

NOBODY = 65534
TMPFS_BYTES = 16 << 20
TMPFS = f"size={TMPFS_BYTES},mode=1777"
SCRATCH = "/scratch"  # not /tmp: what may be read can lie there
_PLACE = "/tmp"  # where the new root is put together
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, *arguments: Any) -> int:
    return int(_LIBC.syscall(ctypes.c_long(number), *arguments))


# Namespaces: another user, no network, no other process, a file system of its own.

_NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000}
_NEW |= {"user": 0x10000000, "pid": 0x20000000, "network": 0x40000000}
_READ_ONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DETACH = 2


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    _checked(_LIBC.mount(*texts, ctypes.c_ulong(flags), data and data.encode()), f"mount {target}")


def enter_namespaces(readable: list[str]) -> None:
    """Go on as a process of new namespaces that sees ``readable`` and a small tmpfs; the caller's waits for it."""
    uid, gid = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(sum(_NEW.values())), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _build_root(readable)
    _leave_to_child()  # the first process of the new namespace: with it all others end
    _leave_to_child()  # an ordinary one, which signals end
    _drop_capabilities()


def _build_root(readable: list[str]) -> None:
    """Make a file system of a tmpfs, read-only binds and a scratch folder the root."""
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    opened = {path: os.open(path, os.O_PATH) for path in [*readable, *DEVICES]}  # before something hides them
    _mount("tmpfs", _PLACE, "tmpfs", _NOSUID | _NODEV, TMPFS)
    for path, descriptor in opened.items():
        target = _PLACE + path
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT))
        _mount(f"/proc/self/fd/{descriptor}", target, None, _BIND | _RECURSIVE)
        os.close(descriptor)
        if path not in DEVICES:
            # What was mounted with these flags must keep them in a namespace of another user.
            kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | 8 | 1024 | 2048 | 4096)
            _mount("none", target, None, _BIND | _REMOUNT | _READ_ONLY | (kept & ~4096))
    os.makedirs(f"{_PLACE}/old")
    os.makedirs(f"{_PLACE}{SCRATCH}")
    number = _PIVOT_ROOT[platform.machine()]
    _checked(_syscall(number, _PLACE.encode(), f"{_PLACE}/old".encode()), "pivot_root")
    os.chdir("/")
    _checked(_LIBC.umount2(b"/old", _DETACH), "umount")
    os.rmdir("/old")
    _mount("tmpfs", SCRATCH, "tmpfs", _NOSUID | _NODEV, TMPFS)
    _mount("none", "/", None, _BIND | _REMOUNT | _READ_ONLY | _NOSUID | _NODEV)
    os.chdir(SCRATCH)


def end_with_parent(parent: int = 0) -> None:
    """Be killed when the parent ends; at once where it is not the one that it should be, for that one has ended."""
    _checked(_LIBC.prctl(1, signal.SIGKILL, 0, 0, 0), "prctl")  # PR_SET_PDEATHSIG
    if parent and os.getppid() != parent:
        os._exit(1)


def _leave_to_child(clear: Callable[[], None] = lambda: None) -> None:
    """Go on in a child; this process waits for it, calls ``clear``, ends as it did, and takes it along when killed."""
    child = os.fork()
    if child == 0:
        end_with_parent()
        return
    os.close(1)
    _, status = os.waitpid(child, 0)
    clear()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _drop_capabilities(but: int = 0) -> None:
    """Give up all capabilities, for good, but for the bits of ``but``."""
    number = 0
    while _LIBC.prctl(24, number, 0, 0, 0) == 0:  # PR_CAPBSET_DROP, until there is no further one
        number += 1
    header, sets = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", but, but, 0, 0, 0, 0)
    _checked(_LIBC.capset(header, sets), "capset")


# Landlock: which files; no TCP; no signal to those outside.

_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (a library's loader asks for none), read files, read folders


def restrict_files(readable: list[str], writable: list[str]) -> bool:
    """Allow only these paths from now on. Returns whether the kernel has Landlock."""
    version = _syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    fields = [rights, 3, 3][: 1 + (version >= 4) + (version >= 6)]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _checked(_syscall(444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)), "landlock")
    for path, allowed in [*((path, _READ) for path in readable), *((path, rights) for path in writable)]:
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH)
        of_files = allowed if os.path.isdir(path) else allowed & (1 << 0 | 1 << 1 | 1 << 2 | (version >= 3) << 14)
        rule = struct.pack("=Qi", of_files, place)
        _checked(_syscall(445, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)), "landlock")
        os.close(place)
    _checked(_syscall(446, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock")
    os.close(ruleset)
    return True


# Seccomp: no sockets, no other process, nothing of the system's. Numbers by machine: x86-64, AArch64.

_DENIED = """
socket 41 198, connect 42 203, bind 49 200, listen 50 201, sendto 44 206, fork 57 -, vfork 58 -, execve 59 221,
execveat 322 281, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_open 434 434,
pidfd_send_signal 424 424, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
setsid 112 157, setpgid 109 154,
setpriority 141 140, sched_setaffinity 203 122, sched_setscheduler 144 119, ioprio_set 251 30, mount 165 40,
umount2 166 39, unshare 272 97, setns 308 268, pivot_root 155 41, chroot 161 51, bpf 321 280,
perf_event_open 298 241, add_key 248 217, request_key 249 218, keyctl 250 219, io_uring_setup 425 425,
userfaultfd 323 282, open_by_handle_at 304 265, shmget 29 194, msgget 68 186, semget 64 190,
init_module 175 105, finit_module 313 273, kexec_load 246 104, reboot 169 142, swapon 167 224,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -,
fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6,
fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""  # from chmod on: what Landlock does not hold
_TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}  # the first argument must be this process
_ON_ITSELF = {"prlimit64": (302, 261)}  # the first argument must be 0
_CLONE, _CLONE3 = (56, 220), 435
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_THREAD = 0x10000
_FIRST_ARGUMENT = 16


def _refuse(number: int) -> int:
    return 0x50000 | number


def _filter(column: int, architecture: int) -> list[tuple[int, int, int, int]]:
    """Return the program: (code, jump if true, jump if false, operand), as in linux/filter.h."""
    denied = _refuse(errno.EPERM)
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, denied)]  # x32 calls have other numbers
    lines += [
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _refuse(errno.ENOSYS)),
    ]  # its flags are in memory; libc then clones
    for call in _DENIED.split(","):
        number = call.split()[1 + column]
        if number != "-":
            lines += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, denied)]
    lines += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _THREAD)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, denied)]
    for calls, argument in ((_TO_ITSELF, os.getpid()), (_ON_ITSELF, 0)):
        for pair in calls.values():
            lines += [(_EQUAL, 0, 4, pair[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 0, 1, argument)]
            lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, denied)]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def filter_system_calls() -> bool:
    """Refuse what no program under test needs, from now on. Returns whether the kernel and this machine have it."""
    if platform.machine() not in _MACHINES:
        return False
    program = _filter(*_MACHINES[platform.machine()])
    content = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    described = struct.pack("HxxxxxxP", len(program), ctypes.addressof(content))
    return bool(_LIBC.prctl(22, 2, described, 0, 0) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# The program.


def set_limits(limits: dict[str, int]) -> None:
    """Set the limits on this process: CPU seconds, bytes of memory and of a file, open files; no core."""
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        soft, hard = (value if most < 0 else min(value, most) for value in (soft, hard))
        resource.setrlimit(kind, (soft, hard))


def drop_root() -> None:
    """Become nobody, where this is root outside of a namespace; but who may read: Python may lie in root's home."""
    if os.geteuid() == 0:
        _checked(_LIBC.prctl(8, 1, 0, 0, 0), "prctl")  # PR_SET_KEEPCAPS
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _drop_capabilities(but=1 << 2)  # CAP_DAC_READ_SEARCH


def end_descendants() -> None:
    """Kill what the program started and left, in whatever session it is."""
    with suppress(ChildProcessError):
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for left in file.read().split():
                    os.kill(int(left), signal.SIGKILL)
            os.waitpid(-1, 0)


def wall_in(job: dict[str, Any]) -> list[str]:
    """Put up all walls that are to be had. Returns their names."""
    readable = [path for path in job["readable"] if os.path.exists(path)]
    if job["wall"] != "bubblewrap":  # which sees to that itself
        end_with_parent(job["parent"])
    if job["wall"] == "namespaces":
        enter_namespaces(readable)
    elif job["wall"] == "rlimits":
        _checked(_LIBC.prctl(36, 1, 0, 0, 0), "prctl")  # PR_SET_CHILD_SUBREAPER
        _leave_to_child(end_descendants)
        drop_root()
        end_with_parent()  # which a change of user forgets
    set_limits(job["limits"])
    _checked(_LIBC.prctl(38, 1, 0, 0, 0), "prctl")  # PR_SET_NO_NEW_PRIVS: what the two below ask for
    writable = [] if job["wall"] == "rlimits" else [SCRATCH]
    walls = [job["wall"]]
    walls += ["landlock"] if restrict_files([*readable, *DEVICES], [*writable, "/dev/null"]) else []
    return walls + (["seccomp"] if filter_system_calls() else [])


def execute(program: str, passed: bytes, tell: Callable[[bytes], object], leave: Callable[[int], None]) -> None:
    """Run a program to its end and say so. ``tell`` and ``leave`` are taken before it can put others in their place."""
    try:
        exec(compile(program, "<program>", "exec"), {})
        tell(passed)
    except BaseException as error:  # noqa: BLE001 - whatever ends it early, SystemExit too
        tell(f"{type(error).__name__}: {error}"[:200].encode(errors="replace"))
    leave(0)


def main() -> None:
    """Do the job on standard input."""
    job = json.load(sys.stdin)
    try:
        walls = wall_in(job)
    except OSError as error:
        os.write(1, f"no wall: {error}".encode())
        os._exit(1)
    nowhere, verdict = os.open("/dev/null", os.O_RDWR), os.dup(1)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    os.closerange(3, verdict)
    os.closerange(verdict + 1, 256)
    execute(job["program"], f"{job['token']} {' '.join(walls)}".encode(), partial(os.write, verdict), os._exit)


if __name__ == "__main__":
    main()
