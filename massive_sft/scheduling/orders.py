"""What the pool of lanes keeps of an order, and what lanes say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from massive_sft.scheduling.nodes import Shape


@dataclass(frozen=True)
class Message:
    """What a lane says of an order.

    Attributes:
        kind: ``event``, ``done``, ``failed``, or ``stopped`` (it ended with a checkpoint because it was told to).
        content: of an event the pickle of it and, before it, of the number of the order that it is of, among those
            beside; of a failure the reason; of another end the pickle of each order's reason, empty where it is done,
            and of whether it was stopped.
        step, checkpoint: how far the training and its checkpoint are, for an event that says so.
    """

    kind: str
    content: Any = None
    step: int = 0
    checkpoint: int = 0


@dataclass
class QueuedOrder:
    """An order in the pool: on which nodes it was tried since it last got further than ever, and what ended it."""

    id: str
    shape: Shape
    data: bytes
    priority: float = 0.0
    number: int = 0
    tries: list[frozenset[str]] = field(default_factory=list)
    step: int = 0
    checkpoint: int = 0
    reason: str = ""
    messages: list[Message] = field(default_factory=list)

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands in its queue: by priority, then by age."""
        return -self.priority, self.number
