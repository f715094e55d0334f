"""``massive-sft`` commands in processes of their own, and faults that strike them at a named moment.

A server process imports everything once and forks each command, so that one starts at once instead of in ten seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked_python
from forked_python import forked_ray, listen, serve
from mlflow_tables import FOLDER
from processes import descendants

# For the server, which knows no other folder of modules before it is asked.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preloaded"])

# Events of the interpreter that touch a path, and which of their arguments it is.
_PLACE = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1}
_REMOVED = {"os.remove": 0, "shutil.rmtree": 0}

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000


@dataclass(frozen=True)
class Fault:
    """What strikes a process right before it makes, writes or renames something to a path that fits a pattern.

    Attributes:
        pattern: searched in the path; of a file written under a temporary name both names count.
        strike: what happens then; ``kill``, ``stop`` or a ``Fill``.
        skip: how many times nothing happens first.
        reading: whether opening a path to read it counts as well.
        removing: whether removing a path does.
    """

    pattern: str
    strike: Callable[[], None]
    skip: int = 0
    reading: bool = False
    removing: bool = False


def kill() -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stand still until SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Fill:
    """Fills the disk to its last byte with ``ballast``."""

    ballast: Path

    def __call__(self) -> None:
        with self.ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue


def install(fault: Fault) -> None:
    """Let a fault strike this process once."""
    fits, left = re.compile(fault.pattern).search, [fault.skip + 1]
    places = _PLACE | (_REMOVED if fault.removing else {})

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event not in places or left[0] == 0:
            return
        path = arguments[places[event]]
        writes = event != "open" or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)  # type: ignore[call-overload]
        if not writes and not fault.reading:
            return
        if isinstance(path, str | os.PathLike) and fits(os.fspath(path)):
            left[0] -= 1
            if left[0] == 0:
                fault.strike()

    sys.addaudithook(audit)


def print_to(out: Path) -> None:
    """Have what this process prints go to a file."""
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - a terminal's, too


def run_command(arguments: tuple[str, ...], out: Path, fault: Fault | None = None) -> None:
    """Run the command line in this process, which it ends; what it prints goes to ``out``."""
    print_to(out)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as from a shell, also where the tests run under nohup
    if fault is not None:
        install(fault)
    sys.argv = ["massive-sft", *arguments]
    from massive_sft.cli.app import main

    main()


def run_with_own_tables(arguments: tuple[str, ...], out: Path, fault: Fault | None = None) -> None:
    """Run the command line in this process, where MLflow makes the tables of a new store one by one."""
    del os.environ[FOLDER]
    run_command(arguments, out, fault)


def start(
    *arguments: object, out: Path, fault: Fault | None = None, run: Callable[..., None] = run_command
) -> BaseProcess:
    """Start ``massive-sft`` with arguments; ``end`` must be called."""
    out.touch()
    return start_function(run, tuple(map(str, arguments)), out, fault)


def start_function(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a function of a module in a process of its own, in this environment; ``end`` must be called."""
    process = _CONTEXT.Process(target=_run_with, args=(dict(os.environ), function, *arguments))
    process.start()
    return process


def _run_with(settings: dict[str, str], run: Callable[..., None], *arguments: object) -> None:
    os.environ.update(settings)
    run(*arguments)


def lead_session(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a session of its own, whose processes a terminal would send its signals to.

    A Ray that it starts has forks for workers, which are of that session too.
    """
    os.setsid()
    folder, parent = Path(tempfile.mkdtemp(prefix="forks-", dir="/tmp")), os.getpid()
    with listen(folder / "socket") as listening:
        if os.fork() == 0:
            serve(listening, over=lambda: os.getppid() != parent)
            shutil.rmtree(folder)
            os._exit(0)
    with forked_ray(folder / "socket"):
        function(*arguments)


def start_hiding(folders: tuple[object, ...], function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a function of a module in a session of its own, which sees empty folders in the place of some.

    So do the workers of a Ray that it starts. ``end`` must be called.
    """
    process = _CONTEXT.Process(target=_hide_and_call, args=(folders, function, *arguments))
    process.start()
    return process


def _hide_and_call(folders: tuple[object, ...], function: Callable[..., None], *arguments: object) -> None:
    _unshare()
    for folder in folders:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    lead_session(function, *arguments)


def start_session(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a function of a module in a session of its own; ``end`` must be called."""
    process = _CONTEXT.Process(target=lead_session, args=(function, *arguments))
    process.start()
    return process


@contextlib.contextmanager
def fork_server() -> Iterator[Path]:
    """Serve ``forked_python``: the address of its server, whose forks end with it."""
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as folder:
        address = Path(folder, "socket")
        with listen(address) as listening:
            server = _CONTEXT.Process(target=serve, args=(listening,))
            server.start()
        try:
            yield address
        finally:
            left = [process.pid for process in descendants() if process.parent == server.pid]
            server.kill()
            server.join()
            for fork in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(fork, signal.SIGKILL)


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Have a Ray that this process starts fork its workers."""
    with fork_server() as address, forked_ray(address):
        yield


def end(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process's end; return its exit code, negative for a signal. One that does not end is killed."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"it did not end in {seconds:g} s")
    return process.exitcode


def until(condition: Callable[[], object], process: BaseProcess, seconds: float = 60) -> None:
    """Wait for what a process brings about, for as long as it computes: a busy machine only makes that longer.

    Raises AssertionError when it ended before, or has not computed for so many seconds.
    """
    used, since = "", time.monotonic()
    while not condition():
        assert process.is_alive(), f"it ended before, with {process.exitcode}"
        with contextlib.suppress(FileNotFoundError):
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if (now := " ".join(stat[11:15])) != used:  # ticks of its own and of those of its children that ended
                used, since = now, time.monotonic()
        assert time.monotonic() < since + seconds, f"it never happened, and nothing did for {seconds:g} s"
        time.sleep(0.02)


def command(*arguments: object, out: Path, fault: Fault | None = None, seconds: float = 120) -> tuple[int, str]:
    """Run ``massive-sft``; return its exit code and what it printed."""
    code = end(start(*arguments, out=out, fault=fault), seconds)
    return code, out.read_text()


def run_with_forks(function: Callable[..., None], arguments: tuple[object, ...], out: Path, address: Path) -> None:
    """Call a function that starts a Ray, whose workers are forks, or torchrun, whose ranks are."""
    print_to(out)
    with forked_ray(address):
        function(*arguments)


def call(function: Callable[..., None], *arguments: object, out: Path, seconds: float = 300) -> tuple[int, str]:
    """Call a function of a module in a process of its own; return its exit code and what it printed."""
    with fork_server() as address:
        process = _CONTEXT.Process(target=run_with_forks, args=(function, arguments, out, address))
        process.start()
        code = end(process, seconds)
        return code, out.read_text()


def torchrun(script: Path, *arguments: object) -> None:
    """Have two ranks run a script; to be called by ``call``."""
    from torch.distributed.run import main

    options = ["--standalone", "--nproc-per-node=2", "--no-python"]
    main([*options, sys.executable, forked_python.__file__, str(script), *map(str, arguments)])


class Room:
    """A small disk of its own (tmpfs in a mount namespace), and a process in there that runs commands on it.

    A context manager. Raises RuntimeError where ``unshare`` is refused: these tests are never skipped.
    """

    def __init__(self, folder: Path, size: str):
        self.folder, self._size = folder, size

    def __enter__(self) -> Room:
        self.folder.mkdir(parents=True)
        self._asking, answering = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve_room, args=(answering, self.folder))
        self._process.start()
        answering.close()
        try:
            self._ask("mount", f"size={self._size}")
        except EOFError as error:
            why = "user namespaces and a tmpfs in one are needed for these tests (`unshare -rm`); allow them"
            raise RuntimeError(why) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()
        end(self._process)

    @property
    def seen(self) -> Path:
        """The disk as this process sees it."""
        return Path(f"/proc/{self._process.pid}/root{self.folder}")

    def command(self, *arguments: object, full_at: str = "") -> tuple[int, str]:
        """Run ``massive-sft`` on a disk that is full from the moment a path is written; return code and output.

        The disk has room again afterwards.
        """
        fault = Fault(full_at, Fill(self.folder / "ballast")) if full_at else None
        code = self._ask("run", tuple(map(str, arguments)), fault)
        return int(code), _out(self.folder).read_text()

    def mount(self, options: str) -> None:
        """Mount the disk anew with other options."""
        self._ask("mount", f"remount,{options}")

    def _ask(self, what: str, *words: object) -> object:
        self._asking.send((what, *words))
        return self._asking.recv()


def _out(folder: Path) -> Path:
    """Return where a command's output goes: beside the disk, for there it could not be written."""
    return folder.with_name(f"{folder.name}.out")


def _unshare() -> None:
    """Become root of a user namespace, and have mounts that nobody else sees (``unshare -rm``).

    A process with threads may not, and one in some thirty has got one of a library in the instant since it was forked: it
    goes on in a fork of its own, which has none.
    """
    user, group = os.getuid(), os.getgid()
    for tries in range(5):
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
            break
        if ctypes.get_errno() != errno.EINVAL or tries == 4:
            raise OSError(ctypes.get_errno(), "unshare")
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def _fork(arguments: tuple[str, ...], out: Path, fault: Fault | None) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        run_command(arguments, out, fault)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - the child must end here, whatever happened
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _serve_room(asked: Connection, folder: Path) -> None:
    """Serve a ``Room`` inside its namespaces."""
    _unshare()
    while True:
        try:
            what, *words = asked.recv()
        except EOFError:
            return
        answer = 0
        if what == "mount":
            subprocess.run(["mount", "-t", "tmpfs", "-o", words[0], "tmpfs", folder], check=True)
        else:
            arguments, fault = words
            answer = _fork(arguments, _out(folder), fault)
            if fault is not None:
                (folder / "ballast").unlink(missing_ok=True)
        asked.send(answer)
