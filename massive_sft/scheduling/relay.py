"""What other processes tell the run that started them."""

from __future__ import annotations

import pickle
import traceback

import ray
from ray.exceptions import RayError

from massive_sft.core.errors import MassiveSFTError
from massive_sft.running.events import RunEvent
from massive_sft.scheduling.pool import Pool


def error_bytes(error: Exception) -> bytes:
    """Return an error as ``heard`` takes it: one that may end in a sentence as it is, others with their traceback.

    Ray would print it, and keep what it is from who waits for it.
    """
    plain = isinstance(error, MassiveSFTError | OSError) and not isinstance(error, RayError)
    return pickle.dumps(error if plain else RuntimeError("".join(traceback.format_exception(error))))


def heard(data: bytes) -> RunEvent:
    """Return what another process tells. Raises what it raised, if that is what it tells."""
    told: RunEvent | Exception = pickle.loads(data)
    if isinstance(told, Exception):
        raise told
    return told


@ray.remote(num_cpus=0)
class Relay(Pool):
    """What trials tell the run that started them, as bytes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes] = []
        self.closed = False

    async def tell(self, event: bytes) -> None:
        """Pass on what happened."""
        self.told.append(event)
        await self._notify()

    async def close(self) -> None:
        """Say that nothing more will happen."""
        self.closed = True
        await self._notify()

    async def take(self) -> list[bytes] | None:
        """Return what happened since the last call, as soon as something has; None at the end."""
        async with self.changed:
            while not self.told and not self.closed:
                await self.changed.wait()
            taken, self.told = self.told, []
        return taken or None
