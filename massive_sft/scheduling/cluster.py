"""The connection to a Ray cluster: the one that ``RAY_ADDRESS`` names, or a local one for this run."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import grpc

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that outlives the connection starts a new Ray

import ray
from ray._private.ray_constants import KV_NAMESPACE_JOB
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JobInfoStorageClient
from ray.exceptions import ActorHandleNotFoundError, RayError, RayTaskError

from massive_sft.core.errors import ClusterLost, InvalidInput, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.scheduling.named_cluster import named_cluster

STARTS = 3  # tries to start Ray here, where its node comes too late for it
LATE = "timed out during startup"
TIMEOUT_S = 10.0  # seconds for the cluster's head to take a connection


@contextmanager
def connected(starting: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Connect to Ray, or start it on this machine; leave it, or stop it, at the end.

    Args:
        starting: entered while Ray starts.

    Raises:
        InvalidInput: ``RAY_ADDRESS`` names no cluster that answers, or Ray refuses to start or to let this process in.
        ClusterLost: what the block asked of Ray was not answered, for it is gone; this is another cluster's job; or Ray
            came too late on a busy machine.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of GPUs hidden from CPU workers
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables; this package prints what happens
    os.environ.setdefault("RAY_worker_niceness", "0")  # local workers are the run itself, not a background of it
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")  # else it warns of a few idle processes
    address = _cluster()
    sigterm = signal.getsignal(signal.SIGTERM)
    # Processes inherit this, so that a closed terminal ends the run, not what it is about to write a checkpoint with.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        with starting or nullcontext():
            _start(address)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        if address:
            _require_own_job()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # which Ray has taken
        yield
    except RayTaskError:  # raised by code that ran there
        raise
    except RayError as error:
        raise ClusterLost(f"{what_was_lost(str(error))}; run the same command to go on") from error
    finally:
        _leave()


def _leave() -> None:
    """Leave Ray, or stop it, while no garbage is collected.

    Some milliseconds lie between the end of Ray's native part and that of Python's handle on it. A reference of Ray's
    that any thread collects within them ends this process with code 1 and without a word.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def what_was_lost(error: str) -> str:
    """Return in a clause what an error of Ray's means for a run: by itself Ray's is half a page."""
    memory = re.search(r"low on memory.*?was ([\d.]+ ?[KMGT]?B) used / ([\d.]+ ?[KMGT]?B) limit", error, re.DOTALL)
    if memory:
        used = f"{memory[1]} of {memory[2]} in use, by this run and by others"
        return f"a machine ran out of memory ({used}), so Ray ended processes of this run; it needs more that is free"
    return f"the cluster was lost ({redact(' '.join(error.split()))[:500]})"


def kill_actors() -> None:
    """Kill all actors of this process's job, which only private parts of Ray name; what waits for one gets an error.

    Those that other actors made, this process has no handle of: they end with who made them.
    """
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    for identity, actor in ray._private.state.actors(job_id=job).items():
        if actor["State"] != "DEAD":
            with suppress(ActorHandleNotFoundError):
                kill_actor(bytes.fromhex(identity))


def hush() -> None:
    """Have Ray print nothing more of what fails in the cluster: it would say of what is killed that it tries again.

    That is what it does itself when it is left, a little later.
    """
    worker: Any = ray._private.worker.global_worker
    worker.threads_stopped.set()
    worker.gcs_error_subscriber.close()


def kill_actor(identity: bytes) -> None:
    """Kill an actor of which only the id is known. Raises ActorHandleNotFoundError when this process has no handle."""
    worker: Any = ray._private.worker.global_worker
    worker.core_worker.kill_actor(ray.ActorID(identity), True)


def _start(address: str | None) -> None:
    for left in reversed(range(STARTS)):
        try:
            _start_once(address)
        except InvalidInput as error:
            # It gives a node 30 seconds, which are not enough on a busy machine, and has no setting for that.
            if LATE not in str(error):
                raise
            if not left:
                raise ClusterLost(f"{error}; a machine that is less busy starts it") from error
        else:
            return


def _start_once(address: str | None) -> None:
    try:
        ray.init(
            address=address or "local",  # else it would join whatever somebody started on this machine
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=None if address else False,
            configure_logging=True,
        )
    except Exception as error:  # Ray raises whatever it meets at its start, a bare Exception too
        ray.shutdown()
        raise InvalidInput(_refusal(address, error)) from error


def _require_own_job() -> None:
    """Raise ClusterLost where Ray had a job of one cluster join another.

    It tells a job any cluster of the machine while the job's own has not noted its address yet, which it does some
    seconds after it begins to take jobs.
    """
    metadata = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("metadata", {})
    job = metadata.get(JOB_ID_METADATA_KEY)
    if job is None:
        return
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
    worker: Any = ray._private.worker.global_worker
    if not worker.gcs_client.internal_kv_exists(key, KV_NAMESPACE_JOB):
        where = redact(os.environ.get("RAY_ADDRESS", ""))
        raise ClusterLost(f"Ray gave the job {job} the address of another cluster ({where}); submit it again")


def _refusal(address: str | None, error: Exception) -> Problem:
    """Return in a sentence why Ray did not start, or did not let this process in: it raises whatever it meets."""
    reason = redact(re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__)[:500]
    if address:
        rule = f"names a cluster that this process cannot join ({reason}); it needs the same Ray and "
        rule += "Python, and the cluster's token where it asks for one (RAY_AUTH_MODE)"
        return Problem("RAY_ADDRESS", rule, redact(address))
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    folder = os.environ.get(name, "/tmp")
    if "AF_UNIX" in reason:
        rule = "is too long for Ray's sockets, whose paths end after 107 bytes; set RAY_TMPDIR to a short local folder"
        return Problem(name, rule, folder)
    if isinstance(error, OSError):
        rule = f"must be a folder that Ray can write its session and its sockets in ({reason})"
        return Problem(name, rule, folder)
    return Problem("Ray", f"does not start on this machine ({reason}); `--inline` runs without it")


def _cluster() -> str | None:
    """Return host:port of the cluster that ``RAY_ADDRESS`` names; None to start one here.

    Raises:
        InvalidInput: it names none, or none that answers; Ray would try for minutes, and not say what it tries.
    """
    named = named_cluster()
    if named is None:
        return None
    if named.startswith(("http://", "https://")):
        rule = "is a dashboard's address, which `submit` takes; to run from here name the head's host:port, or unset it"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, redact(named)))
    if "://" in named:
        rule = "must be a head's host:port, auto or local: what computes here must be a part of the cluster, which a "
        rule += "client of another kind is not; or send the sweep there with `submit`"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, redact(named)))
    try:
        address = str(canonicalize_bootstrap_address("auto")) if named == "auto" else named
    except (OSError, ValueError):
        rule = "finds no cluster on this machine; start one (cluster/README.md), or unset it"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, named)) from None
    _require_answer(address, named)
    return address


def _require_answer(address: str, named: str) -> None:
    found = "" if address == named else f" at {address}, where the last one of this machine was"
    host, _, port = address.rpartition(":")
    try:
        if not host:
            raise ValueError("no host:port")
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":  # with certificates Ray's own greeting is needed
            _require_grpc(address)
    except (OSError, ValueError, OverflowError) as error:
        rule = f"names no cluster that answers{found} ({error}); start one (cluster/README.md), or unset it"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, redact(named))) from None


def _require_grpc(address: str) -> None:
    """Raise OSError where something listens that does not speak as a cluster's head does."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise OSError("something else listens there") from None
