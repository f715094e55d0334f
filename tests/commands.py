"""``massive-sft`` commands in processes of their own, and faults that strike them at a named moment.

A server process imports everything once and forks each command, so that one starts at once instead of in ten seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from forked_workers import forking, listen, serve
from processes import descendants

MODULES = [
    "massive_sft.cli.app",
    "massive_sft.running.execute",
    "massive_sft.running.inline",
    "mlflow.store.tracking.sqlalchemy_store",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(MODULES)

# Events of the interpreter that touch a path, and which of their arguments it is.
_PLACE = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1}


@dataclass(frozen=True)
class BadRecord:
    """What strikes a process right before it makes, writes or renames something to a path that fits a pattern.

    Attributes:
        pattern: searched in the path; of a file written under a temporary name both names count.
        strike: what happens then; ``kill``, ``stop`` or a ``Fill``.
        skip: how many times nothing happens first.
        reading: whether opening a path to read it counts as well.
    """

    pattern: str
    strike: Callable[[], None]
    skip: int = 0
    reading: bool = False


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


def install(fault: BadRecord) -> None:
    """Let a fault strike this process once."""
    fits, left = re.compile(fault.pattern).search, [fault.skip + 1]

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _PLACE or left[0] == 0:
            return
        path = arguments[_PLACE[event]]
        writes = event != "open" or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)  # type: ignore[call-overload]
        if not writes and not fault.reading:
            return
        if isinstance(path, str | os.PathLike) and fits(os.fspath(path)):
            left[0] -= 1
            if left[0] == 0:
                fault.strike()

    sys.addaudithook(audit)


def run_command(arguments: tuple[str, ...], out: Path, fault: BadRecord | None = None) -> None:
    """Run the command line in this process, which it ends; what it prints goes to ``out``."""
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - a terminal's, too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as from a shell, also where the tests run under nohup
    if fault is not None:
        install(fault)
    sys.argv = ["massive-sft", *arguments]
    from massive_sft.cli.app import main

    main()


def start(*arguments: object, out: Path, fault: BadRecord | None = None) -> BaseProcess:
    """Start ``massive-sft`` with arguments; ``end`` must be called."""
    out.touch()
    process = _CONTEXT.Process(target=run_command, args=(tuple(map(str, arguments)), out, fault))
    process.start()
    return process


def lead_session(arguments: tuple[str, ...], out: Path) -> None:
    """As ``run_command``, in a session of its own, whose processes a terminal would send its signals to."""
    os.setsid()
    run_command(arguments, out)


def start_session(*arguments: object, out: Path) -> BaseProcess:
    """Start ``massive-sft`` with arguments in a session of its own; ``end`` must be called."""
    out.touch()
    process = _CONTEXT.Process(target=lead_session, args=(tuple(map(str, arguments)), out))
    process.start()
    return process


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Have a Ray that this process starts fork its workers."""
    with tempfile.TemporaryDirectory(prefix="workers-", dir="/tmp") as folder, forking(Path(folder, "socket")):
        with listen(Path(folder, "socket")) as listening:
            server = _CONTEXT.Process(target=serve, args=(listening,))
            server.start()
        try:
            yield
        finally:
            left = [process.pid for process in descendants() if process.parent == server.pid]
            server.kill()
            server.join()
            for worker in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)


def end(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process's end; return its exit code, negative for a signal. One that does not end is killed."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"it did not end in {seconds:g} s")
    return process.exitcode


def command(*arguments: object, out: Path, fault: BadRecord | None = None, seconds: float = 120) -> tuple[int, str]:
    """Run ``massive-sft``; return its exit code and what it printed."""
    code = end(start(*arguments, out=out, fault=fault), seconds)
    return code, out.read_text()


class Room:
    """A small disk of its own (tmpfs in a mount namespace), and a process in there that runs commands on it.

    A context manager. Raises RuntimeError where ``unshare -rm`` is refused: these tests are never skipped.
    """

    def __init__(self, folder: Path, size: str):
        self.folder, self._size = folder, size

    def __enter__(self) -> Room:
        self.folder.mkdir(parents=True)
        command = ["unshare", "-rm", sys.executable, __file__, str(self.folder), self._size]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._ask("ready") != "ready":
            raise RuntimeError("`unshare -rm` and a tmpfs in it are needed for these tests; allow user namespaces")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    @property
    def seen(self) -> Path:
        """The disk as this process sees it."""
        return Path(f"/proc/{self._process.pid}/root{self.folder}")

    def command(self, *arguments: object, full_at: str = "") -> tuple[int, str]:
        """Run ``massive-sft`` on a disk that is full from the moment a path is written; return code and output.

        The disk has room again afterwards.
        """
        code = self._ask("run", *map(str, arguments), full_at)
        return int(code), _out(self.folder).read_text()

    def mount(self, options: str) -> None:
        """Mount the disk anew with other options."""
        self._ask("mount", options)

    def _ask(self, *words: str) -> str:
        try:
            print(json.dumps(words), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline().strip()  # type: ignore[union-attr]


def _out(folder: Path) -> Path:
    """Return where a command's output goes: beside the disk, for there it could not be written."""
    return folder.with_name(f"{folder.name}.out")


def _fork(arguments: tuple[str, ...], out: Path, fault: BadRecord | None) -> int:
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


def _serve(folder: Path, size: str) -> None:
    """Serve a ``Room`` inside its namespaces."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    for module in MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        what, *words = json.loads(line)
        answer = what
        if what == "mount":
            subprocess.run(["mount", "-o", f"remount,{words[0]}", folder], check=True)
        elif what == "run":
            *arguments, pattern = words
            fault = BadRecord(pattern, Fill(folder / "ballast")) if pattern else None
            answer = str(_fork(tuple(arguments), _out(folder), fault))
            if fault is not None:
                (folder / "ballast").unlink(missing_ok=True)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
