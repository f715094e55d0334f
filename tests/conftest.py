"""What all tests share: no network, no caches outside the test session's own folder."""

from __future__ import annotations

import os
import tempfile

_CACHE = tempfile.mkdtemp(prefix="massive-sft-tests-")
# Before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small to share a product between cores
os.environ["HF_HOME"] = _CACHE
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("COLUMNS", None)  # output that is no terminal's has a width of its own
