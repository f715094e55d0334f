"""Where it happens: a tracking server, a Ray cluster of a head and two nodes, and the driver, as real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s3_server
from processes import descendants, free_port
from ray.cluster_utils import Cluster
from ray.core.generated import gcs_pb2

from chaos.scenes import Scene
from chaos.sweep import write_sweep
from chaos.view import BucketView, View
from massive_sft.ledger.bucket_root import BucketRoot

STORE = 100 << 20  # bytes of a node's object store
MASSIVE_SFT = (sys.executable, "-m", "massive_sft")


class Stage:
    """One sweep's root and all processes that work on it. A context manager: at its end all of them are gone.

    Args:
        folder: of the campaign.
        scene: which cluster, and how long a sweep.
        name: of the root in there.
        stored: what lies in an object store: ``snapshots``, the ``root`` with all in it, or nothing.

    Attributes:
        view: what can be seen of the root.
    """

    def __init__(self, folder: Path, scene: Scene, name: str, stored: str = ""):
        self.folder = folder
        self._scene = scene
        self.log = folder / f"{name}.log"
        root, bucket = folder / name, BucketRoot(s3_server.BUCKET, "chaos")
        self._machines = folder / f"{name}.machines"
        if stored:  # what an interrupted round left there is gone with its store
            for path in (root, self._machines):
                shutil.rmtree(path, ignore_errors=True)
            View(root).tracked.unlink(missing_ok=True)
        self.view = BucketView(bucket, self._machines, View(root).tracked) if stored == "root" else View(root)
        self.port = free_port()
        self.sweep = write_sweep(
            scene.length, folder / "world", folder / f"{name}.yaml", str(self.view.storage),
            f"http://127.0.0.1:{self.port}", str(bucket) if stored == "snapshots" else None,
        )  # fmt: skip
        self._is_stored = bool(stored)
        self._started = 0  # machines
        self._store: subprocess.Popen[bytes] | None = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._tracker: subprocess.Popen[bytes] | None = None
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._cluster: Any = None
        self._nodes: list[Any] = []

    def __enter__(self) -> Stage:
        self.start_tracker()
        if self._is_stored:
            self._start_store()
        # The head only keeps house, so that whoever trains or scores does it on a node that can be lost.
        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | self._machine())
        self._nodes = [self._add_node(), self._add_node()]
        while not self.tracker_answers():
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._driver, self._tracker, self._store):
            if process is not None and process.poll() is None:
                kill_group(process)
        self._cluster.shutdown()

    def _start_store(self) -> None:
        """Start the object store, and let all that is started later find it."""
        port = free_port()
        self._store = self._start([sys.executable, s3_server.__file__, str(port)], "store")
        os.environ |= {**s3_server.KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        os.environ["MASSIVE_SFT_CACHE"] = str(self.folder / "cache")  # of who looks on
        while not s3_server.answers(f"http://127.0.0.1:{port}"):
            time.sleep(0.1)

    # The tracking server

    def start_tracker(self) -> None:
        """Start it on the same port and the same store as before; returns before it answers."""
        options = {"backend-store-uri": f"sqlite:///{self.view.tracked}", "host": "127.0.0.1", "workers": "1"}
        options |= {"port": str(self.port), "artifacts-destination": str(self.view.tracked.with_suffix(".artifacts"))}
        command = [sys.executable, "-m", "mlflow", "server", *(f"--{key}={value}" for key, value in options.items())]
        self._tracker = self._start(command, "tracker")

    def kill_tracker(self) -> None:
        """Kill it with all its workers."""
        kill_group(self._tracker)

    def tracker_answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1.0):
                return True
        except OSError:
            return False

    @property
    def tracker_pid(self) -> int | None:
        return self._tracker.pid if self._tracker is not None and self._tracker.poll() is None else None

    # The cluster

    def replace_node(self, raylet: int) -> None:
        """Clear away what a killed raylet left of its node, and start another in its place."""
        (lost,) = (node for node in self._nodes if _raylet_pid(node) == raylet)
        self._cluster.remove_node(lost, allow_graceful=False)
        self._nodes.remove(lost)
        self._nodes.append(self._add_node())

    def _add_node(self) -> Any:
        return self._cluster.add_node(**self._scene.node, **self._machine(), object_store_memory=STORE)

    def _machine(self) -> dict[str, Any]:
        """Return what gives a node a disk of its own, which is empty."""
        self._started += 1
        return {"env_vars": {"MASSIVE_SFT_CACHE": str(self._machines / str(self._started))}} if self._is_stored else {}

    def node_of(self, worker: int) -> list[int]:
        """Return the processes of the node that an actor's process is on: its raylet, then all others."""
        here = next((actor.address.node_id.hex() for actor in self._actors() if actor.pid == worker), None)
        raylet = next((_raylet_pid(node) for node in self._nodes if node.node_id == here), None)
        if raylet is None:
            return []
        started = [process.pid for process in descendants() if process.parent == raylet]
        actors = [actor.pid for actor in self._actors() if actor.address.node_id.hex() == here]
        return [raylet, *sorted({*started, *actors})]

    def actors_of(self, name: str) -> list[int]:
        """Return the processes of the actors of a class, whosever they are."""
        return [actor.pid for actor in self._actors() if actor.class_name == name]

    def lane_of(self, worker: int) -> list[int]:
        """Return the processes of the lane that a worker is of; none if unclear."""
        workers = [actor for actor in self._actors() if actor.class_name == "RayTrainWorker"]
        group = next((actor.placement_group_id for actor in workers if actor.pid == worker), None)
        return [actor.pid for actor in workers if actor.placement_group_id == group]

    def _actors(self) -> list[Any]:
        """Return those that are alive, with their processes."""
        table: Any = vars(gcs_pb2)["ActorTableData"]
        accessor = self._cluster.global_state._connect_and_get_accessor()
        return [table.FromString(data) for data in accessor.get_actor_table(None, "ALIVE")]

    # The driver

    def start_driver(self) -> None:
        """Run the sweep, with the same command each time; where files are in a store, on a disk that has none yet."""
        environment = {"RAY_ADDRESS": self._cluster.address, **self._scene.driver}
        environment |= self._machine().get("env_vars", {})
        self._driver = self._start([*MASSIVE_SFT, "run", str(self.sweep)], "driver", **environment)

    def mirror(self) -> int:
        """Bring the tracker to what the ledger says; return the exit code."""
        return self._start([*MASSIVE_SFT, "mirror", str(self.sweep)], "mirror").wait()

    @property
    def driver_pid(self) -> int | None:
        return self._driver.pid if self._driver is not None and self._driver.poll() is None else None

    @property
    def driver_code(self) -> int | None:
        """Its exit code, None while it runs."""
        return None if self._driver is None else self._driver.poll()

    # Time

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds, when ``catch_up`` is called."""
        self._later.append((time.monotonic() + seconds, action))

    def catch_up(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [action for when, action in self._later if when <= now]
        self._later = [(when, action) for when, action in self._later if when > now]
        for action in due:
            action()

    @property
    def is_mending(self) -> bool:
        """Whether something is still to be started or woken again."""
        return bool(self._later)

    def _start(self, command: list[str], name: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log.with_suffix(f".{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | environment, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip


def _raylet_pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def run_inline(folder: Path, scene: Scene) -> subprocess.Popen[bytes]:
    """Start the same sweep without Ray and without faults, in the root ``undisturbed``."""
    root = folder / "undisturbed"
    sweep = write_sweep(scene.length, folder / "world", folder / "undisturbed.yaml", str(root), "")
    with (folder / "undisturbed.log").open("wb") as log:
        return subprocess.Popen([*MASSIVE_SFT, "run", "--inline", str(sweep)], stdout=log, stderr=log)


def kill_group(process: subprocess.Popen[bytes] | None) -> None:
    """Kill a process that was started in a session of its own, with what is left of its session."""
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
