"""What one benchmark or measure raises stays its own: the reason is kept, the others go on."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress

from massive_sft.core.errors import Interrupted, LeaseLost, describe_error
from massive_sft.core.files import DISK_FULL
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.storage import Storage

TRACEBACK = "traceback.txt"
_NO_ROOM = DISK_FULL | {errno.EROFS}


def is_no_room(error: Exception) -> bool:
    """Return whether an error says that a disk takes no more: then other work would be for nothing."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


@contextmanager
def missing_on_failure(missing: MutableMapping[str, str], name: str, place: Storage) -> Iterator[None]:
    """Put the reason why a benchmark or measure failed into ``missing``, its traceback into ``place``, and go on.

    Raises:
        Interrupted, LeaseLost: the work is to end, or another process does it.
        OSError: the disk takes no more.
    """
    try:
        yield
    except (Interrupted, LeaseLost):
        raise
    except Exception as error:
        if is_no_room(error):
            raise
        leave_traceback(place, error)
        missing[name] = redact(describe_error(error))


def leave_traceback(place: Storage, error: Exception) -> None:
    """Write an error's traceback, secrets hidden, into ``place``; one that takes no more of it changes nothing."""
    text = redact("".join(traceback.format_exception(error)))
    with suppress(OSError):
        place.put(TRACEBACK, text.encode())


def error_text(error: Exception) -> str:
    """Return an error as a record keeps it and a run tells it, secrets hidden."""
    return redact(f"{type(error).__name__}: {error}" if str(error).strip() else describe_error(error))
