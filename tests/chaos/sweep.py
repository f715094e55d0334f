"""What is disturbed: a small sweep whose trainings, scores and records take long enough to be hit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from massive_sft import tiny

NAME = "chaos"
SAMPLES, BATCH = 96, 8
TASKS = ("facts_mc", "facts_gen")
# Both ways to train, and enough trainings that a sweep is not over before its faults have struck.
SETTINGS = {
    "defaults": {"max_length": 128, "precision": "fp32", "batch": BATCH},
    "full": {"method": "full", "lr": 1e-3},
    "lora": {"method": "lora", "lr": 5e-3, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
}
# The second trial is decided by what came of the first.
SEARCH = {"name": "searched", "model": "llama", "mixture": "one", "setting": "full", "schedule": "constant"} | {
    "space": {"lr": [2e-4, 5e-4, 2e-3]}, "objective": {"maximize": TASKS[0]}, "trials": 2, "at_once": 1,
    "start": {"qmc": 1}, "sampler": "tpe",
}  # fmt: skip


@dataclass(frozen=True)
class Length:
    """How long the trainings of the sweep are, and what they are made on.

    Attributes:
        epochs: of each training; its first and its last are scored.
        resources: the sweep's rules.
    """

    epochs: int
    resources: tuple[Mapping[str, Any], ...] = ()

    @property
    def steps(self) -> int:
        return SAMPLES // BATCH * self.epochs


def settle(folder: Path) -> None:
    """Give this process, and so all that it starts, an environment that nothing outside ``folder`` reaches."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_", "PYTHONPATH"))]:
        del os.environ[name]
    tests = Path(__file__).parent.parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])  # the code of this checkout
    cache = str(folder / "cache")
    os.environ |= {"HF_HOME": cache, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    os.environ |= {"RAY_raylet_start_wait_time_s": "120"}  # on a busy machine


def write_sweep(length: Length, world: Path, path: Path, root: str, tracker: str, snapshots: str | None = None) -> Path:
    """Write the sweep over the offline world in ``world`` (built if missing) into the storage ``root``.

    Args:
        root: a folder, or an address in an object store.
        tracker: address of the MLflow server; empty for a local store.
        snapshots: address in an object store; None to keep them under the root.
    """
    made = tiny.build(world)
    file = {
        "schema": 1,
        "name": NAME,
        "models": {"llama": {"path": str(made.models["tiny-llama"])}},
        "datasets": {"facts": {"path": str(made.datasets["facts"]), "format": "alpaca"}},
        "mixtures": {"one": {"each": "facts", "samples": SAMPLES}},
        "settings": SETTINGS,
        "blocks": [
            {
                "name": "A",
                "model": "all",
                "mixture": "one",
                "setting": [name for name in SETTINGS if name != "defaults"],
            }
            | {"schedule": "constant", "horizon": length.epochs, "snapshots": [1, length.epochs]}
        ],
        "search": [SEARCH | {"horizon": length.epochs, "snapshots": [1, length.epochs]}],
        "resources": [dict(rule) for rule in length.resources],
        "evaluation": {
            "protocol": {"dtype": "fp32"},
            "tasks": [{"path": str(made.tasks[name]), "limit": 40} for name in TASKS],
        },
        "measures": ["perplexity", "layer_change", "token_length"],
        "storage": {
            "root": root,
            "snapshots": snapshots,
            "resume_every": 0,
            "keep_snapshots": {"full": "all", "lora": "all"},
        },
        "tracking": {"mlflow": tracker},
    }
    with path.open("w") as text:
        YAML(typ="safe").dump(file, text)
    return path
