"""For workers of a Ray that counts a GPU which torch does not have: what is given that GPU computes on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

ASKED, ANSWERS = "massive_sft.models.device", ("device_of", "device_name")


class Finder:
    """Changes the module that knows GPUs when a worker imports it, and not before: most of them never do."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != ASKED:
            return None
        sys.meta_path.remove(cls)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, cls)  # type: ignore[arg-type]
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            for answer in ANSWERS:
                setattr(module, answer, lambda gpu: "cpu")

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Ray's ``worker_process_setup_hook``."""
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
