"""Run supervised fine-tuning studies as one declared, resumable sweep.

>>> import massive_sft as ms
>>> plan = ms.plan("my.yaml")                  # what it asks for and what is left of it
>>> results = ms.run("my.yaml", where="method=lora")
>>> results = ms.load("my.yaml")               # or a storage root: tidy pandas frames
>>> results.cells, results.scores, results.gains, results.answers()

``docs/library.md`` shows all of it. Nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from massive_sft.api.plan import plan
    from massive_sft.api.run import run
    from massive_sft.core.errors import Interrupted, InvalidInput, MassiveSFTError
    from massive_sft.cost.estimate import Cost, estimate
    from massive_sft.planning.plan import Plan
    from massive_sft.study.results import Results, load

__version__ = "0.1.0"

# Where each public name is; imported when it is first asked for, for some bring pandas and torch.
_PLACES = {
    "plan": "api.plan",
    "run": "api.run",
    "load": "study.results",
    "estimate": "cost.estimate",
    "Results": "study.results",
    "Plan": "planning.plan",
    "Cost": "cost.estimate",
    "MassiveSFTError": "core.errors",
    "InvalidInput": "core.errors",
    "Interrupted": "core.errors",
}
__all__ = [  # noqa: RUF022 - the verbs first
    "plan", "run", "load", "estimate", "Results", "Plan", "Cost", "MassiveSFTError", "InvalidInput", "Interrupted",
    "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
