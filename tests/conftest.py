"""What all tests share: no network, no caches outside the test session's own folder."""

from __future__ import annotations

import os
import tempfile

import pytest

_CACHE = tempfile.mkdtemp(prefix="massive-sft-tests-")
# Before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small to share a product between cores
os.environ["HF_HOME"] = _CACHE
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("COLUMNS", None)  # output that is no terminal's has a width of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by file for processes beside each other, but all files that start clusters together, and first.

    Those take longest, mostly waiting; two clusters at once on two cores would wait for each other as well.
    """
    clusters = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in clusters)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("clusters" if item.path in clusters else item.path.name))
