"""What all tests share: no network, no caches outside the test session's own folder."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator

import pytest
from mlflow_tables import FOLDER, copy_tables
from shared import shared_folder

_CACHE = str(shared_folder() / "cache")
# Before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small to share a product between cores
os.environ["HF_HOME"] = _CACHE
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ[FOLDER] = str(shared_folder())
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"  # a process keeps the first that it meets; clusters with tokens have their own
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # `nohup make test &` has it ignored, and so would all commands
os.environ.pop("COLUMNS", None)  # output that is no terminal's has a width of its own

# The files that take longest, most of it waiting, begin first: one that began last would keep one process busy while the
# others have nothing left. Those that start clusters are spread, for clusters that start together time out.
LONGEST = (
    "test_task_index",  # which reads what all others then find
    *("test_scheduling", "test_resume", "test_engine", "test_cancel", "test_guides", "test_disk"),
    *("test_bucket_root", "test_mirror"),
    *("test_clusters", "test_extending", "test_submit", "test_verbs", "test_giving_up", "test_stored_snapshots"),
    *("test_inline", "test_concurrent", "test_snapshots", "test_phases", "test_fetch", "test_loop", "test_records"),
    *("test_gpu_check", "test_training_sets", "test_layers", "test_example", "test_tracking"),
)


_imported = 0  # modules that the garbage collector is kept from


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep the garbage collector from what is imported and collected, which stays: half of the time went there."""
    gc.disable()
    try:
        return (yield)
    finally:
        if not session.config.pluginmanager.has_plugin("dsession"):  # which has others run the tests
            copy_tables()
        _freeze_imports()
        gc.enable()


def pytest_runtest_logfinish() -> None:
    """Keep it from what a test imported, too: each training looks through all that is there several times."""
    if len(sys.modules) > _imported:
        gc.collect()
        _freeze_imports()


def _freeze_imports() -> None:
    global _imported
    gc.freeze()
    _imported = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
