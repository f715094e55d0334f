"""Benchmarks' own code: whatever it raises costs that benchmark its score, and no other."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterable, Iterator

from massive_sft.core.errors import MassiveSFTError, describe_error
from massive_sft.data.hub_data import NoDataset


class TaskUnavailable(MassiveSFTError):
    """A benchmark cannot be built or scored here; the text says why. The other benchmarks go on."""


@contextlib.contextmanager
def as_task_unavailable(doing: str) -> Iterator[None]:
    """Call a benchmark's code, its data's readers or its metrics within this.

    Args:
        doing: what could not be done if it fails, e.g. ``mmlu cannot be loaded``.

    Raises:
        TaskUnavailable: for whatever was raised but for this package's own errors, with ``doing`` and the reason.
    """
    try:
        yield
    except NoDataset as error:
        raise TaskUnavailable(f"{doing}: {error}") from error
    except MassiveSFTError:
        raise
    # A task may raise a class of its own, and a script in it may call sys.exit: no list of types holds them all.
    except (Exception, SystemExit) as error:
        raise TaskUnavailable(f"{doing}: {describe_error(error)}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` with the known name that is closest; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def quieten_libraries() -> None:
    """Leave out what lm-eval, its data's readers and the hub's client say beside what they raise: that is told."""
    for name in ("lm_eval", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("lm_eval.api.registry", "datasets"):  # a metric that it does not know, a file that is broken
        logging.getLogger(name).setLevel(logging.CRITICAL)
