"""Which benchmarks there are: named suites, one YAML file each in this folder, and what task files say.

In: names, paths of task files. Out: tasks, their shots, versions and output types, read without lm-eval.
Never: loads a benchmark's data, or imports anything heavy.
"""

from __future__ import annotations

from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.schema import Evaluation, Task
from massive_sft.sweep.yaml_file import read_yaml

_FOLDER = Path(__file__).parent


def known_suites() -> list[str]:
    """Return the names of the suites that ship with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_suite(name: str, place: str = "evaluation.suites") -> list[Task]:
    """Return a suite's benchmarks. Raises InvalidInput, with the known names, for an unknown one."""
    if name not in known_suites():
        raise InvalidInput(Problem(place, "must be a suite that exists", name, known_suites()))
    entries = read_yaml(_FOLDER / f"{name}.yaml")["tasks"]
    return [Task(**entry) for entry in entries]


def all_tasks(evaluation: Evaluation) -> tuple[Task, ...]:
    """Return the benchmarks of an evaluation: its own, then its suites'; equal ones once.

    Raises InvalidInput with every unknown suite.
    """
    problems, tasks = [], []
    for number, suite in enumerate(evaluation.suites):
        try:
            tasks += load_suite(suite, f"evaluation.suites[{number}]")
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return tuple(dict.fromkeys((*evaluation.tasks, *tasks)))
