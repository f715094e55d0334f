"""For a Ray that counts GPUs which torch does not have: what is given one computes on the CPU.

What is scheduled is real. Trainings are told that they have no GPU, and the workers of a lane talk through gloo.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

HOOK = {"worker_process_setup_hook": "counted_gpu.install"}
DEVICE = "massive_sft.models.device"


def _cpu(gpu: bool) -> str:
    return "cpu"


class _Changing(MetaPathFinder):
    """Changes the functions that know GPUs once their module is imported, which most processes never do."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != DEVICE:
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            _change(module)

        spec.loader.exec_module = execute_and_change
        found: ModuleSpec = spec
        return found


def _change(device: Any) -> None:
    for function in (device.device_of, device.device_name):
        function.__code__ = _cpu.__code__  # wherever it was imported to


def install() -> None:
    """Ray's ``worker_process_setup_hook``."""
    if DEVICE in sys.modules:
        _change(sys.modules[DEVICE])
    else:
        sys.meta_path.insert(0, _Changing())


def on_gpus(make_demand: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``make_demand`` for a cluster where each worker and each scorer has one of the counted GPUs.

    Trainings are told to be long, so that each is worth a lane.
    """
    from massive_sft.scheduling.nodes import Shape

    def demand(*arguments: Any) -> Any:
        made = make_demand(*arguments)
        shapes = {trajectory: Shape(shape.workers, 1.0, 1.0) for trajectory, shape in made.shapes.items()}
        rules = replace(made.rules, scorer=Shape(1, 1.0, 1.0))
        return replace(
            made, rules=rules, shapes=shapes, training_s=dict.fromkeys(shapes, 3600.0),
            shape_of=lambda run: Shape(made.shape_of(run).workers, 1.0, 1.0),
        )  # fmt: skip

    return demand


def pretend(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """Ray's ``RAY_RUNTIME_ENV_HOOK`` of a driver: change it, and have all its processes changed."""
    from massive_sft.scheduling import lanes, run_on_ray
    from massive_sft.scheduling.process_group import ProcessGroupConfig

    run_on_ray.make_demand = on_gpus(run_on_ray.make_demand)
    lanes.ProcessGroupConfig = partial(ProcessGroupConfig, backend="gloo")  # type: ignore[misc, assignment]
    return {**(runtime_env or {}), **HOOK}
