"""The connection to a Ray cluster: the one that ``RAY_ADDRESS`` names, or a local one for this run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that outlives the connection starts a new Ray

import ray

from massive_sft.errors import InvalidInput, Problem
from massive_sft.ledger.provenance import redact

TIMEOUT = 10.0  # seconds for the cluster's head to take a connection


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray, or start it on this machine; leave it, or stop it, at the end.

    Raises:
        InvalidInput: ``RAY_ADDRESS`` names no cluster that answers.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of GPUs hidden from CPU workers
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables; this package prints what happens
    os.environ.setdefault("RAY_worker_niceness", "0")  # local workers are the run itself, not a background of it
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")  # else it warns of a few idle processes
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _require_reachable(address)
    sigterm = signal.getsignal(signal.SIGTERM)
    # Processes inherit this, so that a closed terminal ends the run, not what it is about to write a checkpoint with.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    ray.init(
        address=address or "local",  # else it would join whatever somebody started on this machine
        logging_level=logging.ERROR,
        log_to_driver=False,
        include_dashboard=None if address else False,
        configure_logging=True,
    )
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # which Ray has taken
        yield
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Refuse at once what Ray would try to reach for minutes."""
    if address.startswith(("http://", "https://")):
        rule = "is a dashboard's address, which `submit` takes; to run from here name the head's host:port, or unset it"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, redact(address)))
    host, _, port = address.rpartition(":")
    if not host or "://" in address:
        return  # auto, local or another scheme: Ray finds out what it means
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        rule = f"names no cluster that answers ({error}); start one (cluster/README.md), or unset it"
        raise InvalidInput(Problem("RAY_ADDRESS", rule, redact(address))) from None
