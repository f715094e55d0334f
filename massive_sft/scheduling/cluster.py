"""The connection to a Ray cluster: the one that ``RAY_ADDRESS`` names, or a local one for this run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray, or start it on this machine; leave it, or stop it, at the end."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of GPUs hidden from CPU workers
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables; this package prints what happens
    os.environ.setdefault("RAY_worker_niceness", "0")  # local workers are the run itself, not a background of it
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        logging_level=logging.ERROR,
        log_to_driver=False,
        include_dashboard=False if "RAY_ADDRESS" not in os.environ else None,
        configure_logging=True,
    )
    try:
        yield
    finally:
        ray.shutdown()
