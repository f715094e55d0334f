"""Programs that try to get out of the sandbox, or to pass without passing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import BoundedSemaphore

import pytest

from massive_sft.sandbox import run as sandbox
from massive_sft.sandbox import walls
from massive_sft.sandbox.pass_at_k import pass_at_k
from massive_sft.sandbox.run import Limits, NoWall, choose, run, run_all
from massive_sft.sandbox.walls import Wall

WALLS: tuple[Wall, ...] = ("bubblewrap", "namespaces", "rlimits")
REFUSED = """
def refused(attempt):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        return True
    raise SystemExit("not refused")
"""


@pytest.fixture(params=WALLS)
def wall(request: pytest.FixtureRequest) -> Iterator[Wall]:
    """Each wall that this machine allows."""
    try:
        run("pass", request.param)
    except (NoWall, OSError) as error:
        pytest.skip(str(error))
    yield request.param


def test_program_that_runs_to_its_end_passes_and_its_walls_are_told(wall: Wall) -> None:
    program = (
        "import math, re, json, collections, heapq, itertools\ndef add(a, b):\n    return a + b\nassert add(2, 3) == 5"
    )
    outcome = run(program, wall)
    assert outcome.passed and outcome.walls[0] == wall


def test_what_touches_the_machine_is_refused(wall: Wall, tmp_path: Path) -> None:
    secret, written = tmp_path / "secret", tmp_path / "written"
    secret.write_text("token")
    secret.chmod(0o644)
    tmp_path.chmod(0o777)
    program = (
        REFUSED
        + f"""
import os, socket, subprocess, sys, signal, threading
for path in ({str(written)!r}, "/etc/written", "/usr/written", {os.sep + "written"!r}, "/dev/shm/written"):
    refused(lambda: open(path, "w"))
refused(lambda: open({str(secret)!r}))
refused(lambda: open("/etc/passwd"))
refused(lambda: os.listdir("/root"))
refused(lambda: os.chmod({str(secret)!r}, 0o600))
refused(lambda: os.utime({str(secret)!r}))
refused(lambda: os.remove({str(secret)!r}))
refused(lambda: os.symlink("/etc", {str(written)!r}))
assert dict(os.environ) == {{}} or set(os.environ) <= {{"PWD", "LC_CTYPE"}}, dict(os.environ)
for process in ("1", "self", str(os.getppid())):
    refused(lambda: open(f"/proc/{{process}}/environ", "rb").read())
refused(os.fork)
refused(lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {{}}))
refused(lambda: subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True))
refused(lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]))
refused(lambda: os.kill(os.getppid(), signal.SIGKILL))
refused(lambda: os.kill(-1, signal.SIGKILL))
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    refused(lambda: socket.socket(family))
refused(lambda: bytearray(2 << 30))
thread = threading.Thread(target=print)
thread.start()
thread.join()
"""
    )
    outcome = run(program, wall)
    assert outcome.passed, outcome
    assert secret.read_text() == "token" and not written.exists()


def test_server_of_this_machine_is_not_reached(wall: Wall) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", wall)
        assert outcome.ending == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("import time\ntime.sleep(60)", "timed out"),
        (
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\nimport time\ntime.sleep(60)",
            "timed out",
        ),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "passed"),
        ("while True: print('x' * 10000)", "timed out"),
        ("import os\nwhile True: os.fork()", "failed"),
        ("kept = []\nwhile True: kept.append(bytearray(1 << 24))", "failed"),
        ("def f(): f()\nf()", "failed"),
        (
            "import os\nfor place in range(256):\n    try: os.write(place, b'x' * 65536)\n    except OSError: pass",
            "failed",
        ),
        ("import ctypes\nctypes.string_at(0)", "killed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("def broken(:", "failed"),
        ("assert input() == ''", "failed"),
        ("a\0b", "failed"),
        ("x = '\\ud800'", "passed"),
    ],
)
def test_program_that_does_not_end_well_ends_soon(program: str, ending: str) -> None:
    begun = time.monotonic()
    outcome = run(program, choose("rlimits"), Limits(cpu_s=1, wall_s=3, memory_bytes=1 << 29))
    assert outcome.ending == ending, outcome
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "head",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "print('passed', flush=True)\nimport os; os._exit(0)",
        "import os\nfor place in range(9):\n    try: os.write(place, b'0' * 32 + b' bubblewrap')\n    except OSError: pass\nos._exit(0)",
        "import builtins\nbuiltins.exec = builtins.compile = builtins.AssertionError = print",
        "import os\nos._exit = os.write = lambda *arguments: None",
        "import __main__\n__main__.execute = __main__.main = print",
        "import atexit, os\natexit.register(os._exit, 0)",
        "import threading, os\nthreading.Timer(0, os._exit, (0,)).start()\nimport time; time.sleep(1)",
        "import sys\nsys.excepthook = print\nsys.settrace(lambda *arguments: None)",
        "check = lambda f: None",
    ],
)
def test_program_that_pretends_to_have_passed_has_not(head: str) -> None:
    program = f"def f(x): return x\n{head}\ndef check(f):\n    assert f(1) == 2\ncheck(f)"
    assert not run(program, choose("rlimits")).passed


def test_scratch_folder_is_small_and_empty_each_time() -> None:
    wall = choose("strongest")
    write = "import os\nassert os.listdir() == []\nopen('file', 'w').write('x')\nassert open('file').read() == 'x'"
    assert run(write, wall).passed and run(write, wall).passed
    fill = "for number in range(64):\n    open(str(number), 'w').write('x' * (1 << 19))"
    assert "No space left" in run(fill, wall).detail
    assert "File too large" in run("open('file', 'w').write('x' * (1 << 21))", wall).detail


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A guest by whose path its processes are told from others."""
    guest = Path(shutil.copy(walls.GUEST, tmp_path))
    monkeypatch.setattr(walls, "GUEST", guest)
    walls.readable.cache_clear()
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    yield guest
    walls.readable.cache_clear()


def _wait_until_none_runs(guest: Path) -> None:
    deadline = time.monotonic() + 10
    while any(str(guest).encode() in _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_process_of_a_killed_program_stays(wall: Wall, guest: Path) -> None:
    leave = "import os\ntry: os.setsid()\nexcept OSError: pass\n"
    for head in ("", leave):
        program = f"{head}import time\ntime.sleep(60)"
        assert run(program, wall, Limits(wall_s=1.5)).ending == "timed out"
        _wait_until_none_runs(guest)


def test_no_program_stays_of_a_run_that_is_killed(wall: Wall, guest: Path) -> None:
    code = f"""
from pathlib import Path
from massive_sft.sandbox import walls
from massive_sft.sandbox.run import run
walls.GUEST = Path({str(guest)!r})
run("import time; time.sleep(60)", {wall!r})
"""
    with subprocess.Popen([sys.executable, "-c", code]) as job:
        while len(_below(job.pid)) < 2:
            assert job.poll() is None
        time.sleep(0.5)  # for the program to begin
        job.kill()
    _wait_until_none_runs(guest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _below(process: int) -> list[int]:
    """Return a process's descendants, the last first."""
    children = [
        int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [found for child in children for found in (*_below(child), child)]


def test_job_that_a_scheduler_suspends_fails_no_program(wall: Wall) -> None:
    program = "import time\ntime.sleep(1)"
    code = f"from massive_sft.sandbox.run import *; print(run({program!r}, {wall!r}, Limits(wall_s=3)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as job:
        stopped: list[int] = []
        while len(stopped) < 2 or stopped != _below(job.pid):  # the guest has begun
            stopped = _below(job.pid)
            for process in (*stopped, job.pid) if len(stopped) > 1 else ():
                os.kill(process, signal.SIGSTOP)
        time.sleep(4)  # more than the program has
        for process in (job.pid, *stopped):  # whoever waits may be the first to go on
            with suppress(ProcessLookupError):  # it was killed
                os.kill(process, signal.SIGCONT)
            time.sleep(0.2)
        told, _ = job.communicate()
    assert "ending='passed'" in told, told


def test_outcomes_come_in_order() -> None:
    outcomes = run_all([f"assert {number} % 2" for number in range(6)], choose("rlimits"))
    assert [outcome.passed for outcome in outcomes] == [False, True] * 3


def test_threads_that_have_programs_to_run_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_room", BoundedSemaphore(1))
    wall, began = choose("rlimits"), time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: run_all(["import time; time.sleep(1)"], wall), range(6)))
    assert all(outcome.passed for (outcome,) in outcomes) and time.monotonic() - began >= 6


def test_machine_without_strong_walls_is_refused_unless_weak_ones_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STRONG", ())
    with pytest.raises(NoWall, match="cannot be walled in"):
        choose("strongest")
    assert choose("rlimits") == "rlimits"


def test_pass_at_k_is_the_chance_that_one_of_k_drawn_answers_passed() -> None:
    assert pass_at_k(5, 0, 1) == 0.0
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # one of the ten draws of three has none
    assert pass_at_k(5, 5, 5) == 1.0
    with pytest.raises(ValueError, match="1 to 5"):
        pass_at_k(5, 1, 6)
