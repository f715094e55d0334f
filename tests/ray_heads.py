"""Ray clusters of this machine that ``ray start`` begins, with ports and folders of their own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from commands import print_to
from forked_python import ADDRESS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node_options(**ports: int) -> list[str]:
    """Return what ``ray start`` takes for a node whose ports are its own."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ports.items()]
    options += ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    return [*options, "--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]


def node_environment(runs: Path) -> dict[str, str]:
    kept = ("HOME", "HF_HOME", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "PYTHONPATH")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return own | {"PATH": path, "RUNS": str(runs), "RAY_AUTH_MODE": "disabled"}


def start_ray(options: list[str], environment: dict[str, str], folder: str) -> None:
    """Run ``ray start --block`` in this process."""
    from ray.scripts.scripts import main

    print_to(Path(os.devnull))
    forks = {ADDRESS: os.environ[ADDRESS]} if ADDRESS in os.environ else {}
    os.environ.clear()
    os.environ |= environment | forks
    os.chdir(folder)
    sys.argv = ["ray", "start", "--block", *options]
    main()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.2)


def end_session(session: int) -> None:
    """Kill what is left of a session of ours; ``ray stop`` would stop every Ray of this machine."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
