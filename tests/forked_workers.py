"""Ray's workers as forks of a process that has imported what they need: one starts at once instead of in seconds.

Ray starts a worker as ``python default_worker.py ...``. After ``forking`` it starts this file instead, which hands all
that it is (arguments, environment, folder, files, group, signals) to a server. That forks, and the fork becomes Ray's
worker; this process stays for it, ends when it ends, and takes it along when it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ADDRESS = "TESTS_FORKED_WORKERS"  # the variable that names the server's socket
STANDARD = (0, 1, 2)


@contextlib.contextmanager
def forking(address: Path) -> Iterator[None]:
    """Have a Ray that this process starts get its workers from the server at ``address``."""
    import inspect

    from ray._private import services

    start = services.start_raylet

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        bound = inspect.signature(start).bind(*arguments, **options)
        bound.arguments["worker_path"] = __file__
        return start(*bound.args, **bound.kwargs)

    services.start_raylet = start_raylet
    os.environ[ADDRESS] = str(address)
    try:
        yield
    finally:
        services.start_raylet = start
        del os.environ[ADDRESS]


def hand_over(arguments: list[str]) -> int:
    """Have the server fork a worker in this process's stead; return its exit code when it has ended."""
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "blocked": blocked}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [b"."], STANDARD)
        server.sendall(json.dumps(order | {"group": os.getpgid(0)}).encode() + b"\n")
        ended = server.makefile().read()
    return int(ended or 1)


def listen(address: Path) -> socket.socket:
    """Return the socket on which ``serve`` is asked: whoever asks before that waits."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(64)
    return listening


def serve(listening: socket.socket, over: Callable[[], bool] = lambda: False) -> None:
    """Fork a worker for each who asks, until ``over``; those that are left then go on alone."""
    # Ray keeps what these were when it was imported: no job yet, and who must live as long as its workers do.
    os.environ |= {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
    import_all()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    waiting: dict[int, socket.socket] = {}  # who waits for the end of which worker
    with listening, selectors.DefaultSelector() as ready:
        ready.register(listening, selectors.EVENT_READ)
        while not over():
            for key, _ in ready.select(0.05):
                if key.fileobj is listening:
                    asking = listening.accept()[0]
                    worker = fork_worker(asking)
                    waiting[worker] = asking
                    ready.register(asking, selectors.EVENT_READ, worker)
                else:  # it was killed
                    ready.unregister(key.fileobj)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGKILL)
            for worker, asking in list(waiting.items()):
                ended, status = os.waitpid(worker, os.WNOHANG)
                if ended:
                    del waiting[worker]
                    with contextlib.suppress(KeyError):
                        ready.unregister(asking)
                    with contextlib.suppress(OSError):
                        asking.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                    asking.close()


def import_all() -> None:
    """Import what drivers and workers of a run do."""
    import gc

    import ray.actor
    from ray._raylet import ActorClassID

    class FreshID:
        """Ids of classes without Ray's generator, whose state the forks would share, and so their ids of tasks."""

        @staticmethod
        def from_random() -> ActorClassID:
            return ActorClassID(os.urandom(ActorClassID.size()))

    ray.actor.ActorClassID = FreshID

    import ray.data
    import ray.train.torch
    import ray.tune

    import massive_sft.running.cell
    import massive_sft.running.training
    import massive_sft.scheduling.run_on_ray  # noqa: F401

    gc.freeze()  # else each fork's first collection would copy it all


def fork_worker(asking: socket.socket) -> int:
    """Fork a worker for who asks; return its process id."""
    _, files, _, _ = socket.recv_fds(asking, 1, len(STANDARD))
    order = json.loads(asking.makefile().readline())
    worker = os.fork()
    if worker:
        for file in files:
            os.close(file)
        return worker
    try:
        become(order, files)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the fork must end here, whatever happened
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(order: dict[str, Any], files: list[int]) -> None:
    """Go on as the process that asked would have gone on as Ray's worker."""
    import runpy

    from ray._private import workers
    from ray._raylet import Config

    for file, number in zip(files, STANDARD, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.setpgid(0, order["group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    Config.initialize("")  # Ray has read the server's
    here = sys.path.index(str(Path(__file__).parent)) if str(Path(__file__).parent) in sys.path else 0
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[here:here] = more
    script = str(Path(workers.__file__ or "").parent / "default_worker.py")
    sys.argv = [script, *order["arguments"]]
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - its own
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    sys.exit(hand_over(sys.argv[1:]))
