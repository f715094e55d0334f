"""Python programs as forks of a process that has imported what they need: they begin at once instead of in seconds.

``python forked_python.py SCRIPT ...`` does what ``python SCRIPT ...`` does. It hands all that it is (arguments,
environment, folder, files, group, signals) to a server. That forks, and the fork runs the script; this process stays
for it, ends as it ends, and takes it along when it is killed. So begins all that a Ray has of Python, after
``forked_ray``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

ADDRESS = "TESTS_FORKED_PYTHON"  # the variable that names the server's socket
BY_PIPE = "RAY_enable_pipe_based_agent_to_parent_health_check"  # Ray's agents ask not whose children they are
STANDARD = (0, 1, 2)


@contextlib.contextmanager
def forked_ray(address: Path) -> Iterator[None]:
    """Have a Ray that this process starts get its workers, monitors and agents from the server at ``address``."""
    import inspect
    from unittest import mock

    from ray._private import services

    start_raylet, start_process = services.start_raylet, services.start_ray_process

    def start_with_workers(*arguments: Any, **options: Any) -> Any:
        bound = inspect.signature(start_raylet).bind(*arguments, **options)
        bound.arguments |= {"worker_path": __file__, "setup_worker_path": __file__}
        return start_raylet(*bound.args, **bound.kwargs)

    def start_forked(command: list[str], *arguments: Any, **options: Any) -> Any:
        if command[:2] == [sys.executable, "-u"]:
            command = [sys.executable, __file__, *command[2:]]
        return start_process(command, *arguments, **options)

    python = [sys.executable, __file__]  # of the dashboard and the agents, which the raylet starts
    replaced = {
        "start_raylet": start_with_workers,
        "start_ray_process": start_forked,
        "_build_python_executable_command_memory_profileable": lambda *_, **__: python,
    }
    environment = {ADDRESS: str(address), BY_PIPE: "1"}
    with mock.patch.multiple(services, **replaced), mock.patch.dict(os.environ, environment):
        yield


def hand_over(arguments: list[str]) -> int:
    """Have the server fork in this process's stead; return the exit code when the fork has ended.

    One of Ray's workers does not outlive its raylet, also where it stands still: then this process ends, and with it
    the fork. Ray itself would look for the server, which a fork takes for the raylet.
    """
    parent, is_worker = os.getppid(), is_ray_worker(arguments)
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "blocked": blocked}
    order["group"] = None if os.getsid(0) == os.getpid() else os.getpgid(0)  # none: a session of its own
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [b"."], STANDARD)
        server.sendall(json.dumps(order).encode() + b"\n")
        while not select.select([server], [], [], 1.0 if is_worker else None)[0]:
            if os.getppid() != parent:
                return 1
        ended = server.makefile().read()
    return int(ended or 1)


def listen(address: Path) -> socket.socket:
    """Return the socket on which ``serve`` is asked: whoever asks before that waits."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(64)
    return listening


def serve(listening: socket.socket, over: Callable[[], bool] = lambda: False) -> None:
    """Fork for each who asks, until ``over``; the forks that are left then go on alone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    waiting: dict[int, socket.socket] = {}  # who waits for the end of which fork
    with listening, selectors.DefaultSelector() as ready:
        ready.register(listening, selectors.EVENT_READ)
        while not over():
            for key, _ in ready.select(0.05):
                if key.fileobj is listening:
                    asking = listening.accept()[0]
                    made = fork(asking)
                    waiting[made] = asking
                    ready.register(asking, selectors.EVENT_READ, made)
                else:  # it was killed
                    ready.unregister(key.fileobj)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGKILL)
            for made, asking in list(waiting.items()):
                ended, status = os.waitpid(made, os.WNOHANG)
                if ended:
                    del waiting[made]
                    with contextlib.suppress(KeyError):
                        ready.unregister(asking)
                    with contextlib.suppress(OSError):
                        asking.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                        asking.shutdown(socket.SHUT_WR)  # other forks have it open too
                    asking.close()


def fork(asking: socket.socket) -> int:
    """Fork for who asks; return the fork's process id."""
    _, files, _, _ = socket.recv_fds(asking, 1, len(STANDARD))
    order = json.loads(asking.makefile().readline())
    made = os.fork()
    if made:
        for file in files:
            os.close(file)
        return made
    try:
        become(order, files)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the fork must end here, whatever happened
        import traceback

        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(order: dict[str, Any], files: list[int]) -> None:
    """Go on as the process that asked would have gone on without this file."""
    for file, number in zip(files, STANDARD, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.setpgid(0, order["group"]) if order["group"] else os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    here = sys.path.index(str(Path(__file__).parent)) if str(Path(__file__).parent) in sys.path else 0
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[here:here] = more
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - its own, as are these
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.execvp = execute  # type: ignore[assignment]
    with forked_ray(Path(os.environ[ADDRESS])):  # an autoscaler starts further nodes
        run(order["arguments"])


def run(arguments: list[str]) -> None:
    """Run a script, or the one of Ray's that this file stands for."""
    import runpy

    from ray._raylet import Config

    Config.initialize("")  # Ray has read the server's environment
    if is_ray_worker(arguments):
        arguments = [ray_script(arguments), *arguments]
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def execute(file: str, args: list[str], execvp: Callable[[str, list[str]], NoReturn] = os.execvp) -> None:
    """Execute a program; if it is this file, in this process: Ray's setup_worker.py ends so."""
    words = shlex.split(args[-1])
    if words[:3] == ["exec", sys.executable, __file__]:
        run(words[3:])
    else:
        execvp(file, args)


def is_ray_worker(arguments: list[str]) -> bool:
    """Return whether this file stands for one of Ray's scripts that begin workers."""
    return not arguments[0].endswith(".py") or arguments[0] == __file__


def ray_script(arguments: list[str]) -> str:
    """Return which of Ray's scripts is meant: this file stands for both.

    A worker with a runtime environment is asked for as ``setup_worker.py default_worker.py ...``, which ends in the
    second in that environment.
    """
    from ray._private import workers

    return str(
        Path(workers.__file__ or "").parent / ("setup_worker.py" if arguments[0] == __file__ else "default_worker.py")
    )


if __name__ == "__main__":
    ended = hand_over(sys.argv[1:])
    if ended < 0:
        os.kill(os.getpid(), -ended)
    sys.exit(ended)
