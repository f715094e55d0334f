"""The scenes: on which cluster the sweep runs, how long its trainings are, and which faults strike it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.sweep import Length


@dataclass(frozen=True)
class Scene:
    """Where a sweep is disturbed, and by what.

    Attributes:
        node: what each of the two nodes has that train and score.
        aims: by the kind of fault, the phases it may aim at.
        is_inline: whether the undisturbed sweep is one without Ray, beside the disturbed one; else it is one on a
            cluster like that, before it: a training on several workers needs that.
        driver: variables of the driver's environment.
    """

    length: Length
    node: Mapping[str, Any]
    aims: Mapping[str, tuple[str, ...]]
    is_inline: bool
    driver: Mapping[str, str] = field(default_factory=dict)


ONE_LANE = Scene(
    Length(epochs=3),
    node={"num_cpus": 1},
    aims={
        "kill a worker": ("before a checkpoint", "after a checkpoint", "saving a checkpoint", "publishing"),
        "kill a scorer": ("scoring", "measuring", "recording"),
        "kill a raylet": ("after a checkpoint", "scoring"),
        "kill the driver": ("after a checkpoint", "saving a checkpoint", "scoring", "measuring", "mirroring"),
        "kill who decides": ("deciding",),
        "kill the tracker": ("mirroring",),
        "stop a lease holder": ("after a checkpoint", "scoring", "mirroring"),
    },
    is_inline=True,
)
# Six pretended GPUs: a lane of two workers, two of one, and what is left for scorers.
LANES = Scene(
    Length(epochs=8, resources=({"when": {"setting": "full"}, "workers": 2, "zero": 2},)),
    node={"num_cpus": 4, "num_gpus": 3},
    aims={
        "kill a worker": ("after a checkpoint", "saving a checkpoint"),
        "kill the second worker": ("after a checkpoint", "saving a checkpoint"),
        "kill a lane": ("after a checkpoint", "saving a checkpoint"),
        "kill a trial": ("before a checkpoint", "after a checkpoint", "saving a checkpoint"),
        "kill the lane pool": ("after a checkpoint", "saving a checkpoint"),
        "kill the cell queue": ("scoring", "measuring"),
        "kill a scorer": ("scoring", "measuring"),
        "kill a reader": ("scoring", "measuring"),
        "kill a node": ("after a checkpoint", "scoring"),
        "stop a worker": ("after a checkpoint",),
        "stop a node": ("after a checkpoint", "scoring"),
    },
    is_inline=False,
    driver={"RAY_RUNTIME_ENV_HOOK": "counted_gpu.pretend"},
)
SCENES = {"one-lane": ONE_LANE, "lanes": LANES}
