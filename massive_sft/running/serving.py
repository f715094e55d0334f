"""Serving an order: its training, or those that take their steps together, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from massive_sft.core.stop import never_stop
from massive_sft.ledger.store import Ledger
from massive_sft.ledger.superseded import remove_superseded
from massive_sft.models.kept_base import KeptBase
from massive_sft.running.training import train
from massive_sft.running.trial import Order
from massive_sft.training.adapter_group import AdapterGroup, GroupMember
from massive_sft.training.events import Event
from massive_sft.training.ranks import is_rank0


def serve(
    order: Order,
    report: Callable[[int, Event], None],
    stop: Callable[[], bool] = never_stop,
    bases: KeptBase | None = None,
) -> Sequence[Exception | None]:
    """Train what an order and those grouped with it ask for; return what each raised, the order first.

    An order by itself raises what its training does (``running.training.train``).

    Args:
        report: called with each event, and the number of the order that it is of.
        stop, bases: as of ``train``.
    """
    if is_rank0():
        remove_superseded(order.root)  # so that no disk of a machine fills with what its lost lanes left

    def serve_one(number: int, one: Order, member: GroupMember | None = None) -> None:
        train(one.run, Ledger.open(one.root), one.attempt, partial(report, number), stop, bases, member)

    if not order.grouped_with:
        serve_one(0, order)
        return (None,)
    group = AdapterGroup(order.run.layout, bases)
    return group.train([partial(serve_one, *each) for each in enumerate((order, *order.grouped_with))])
