"""Which Ray the environment names. Light, for what only asks."""

from __future__ import annotations

import os


def named_cluster() -> str | None:
    """Return what ``RAY_ADDRESS`` says; None where it names no cluster, so that a run starts a Ray of its own."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    return None if named in ("", "local") else named
