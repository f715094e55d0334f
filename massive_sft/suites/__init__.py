"""Which benchmarks there are: named suites, one YAML file each in this folder, and what task files say.

In: names, paths of task files. Out: tasks, their shots, versions, output types and which metric is their score.
Never: loads a benchmark's data, or imports anything heavy.
"""

from __future__ import annotations

from pathlib import Path

from massive_sft.core.errors import InvalidInput
from massive_sft.suites.declared import title
from massive_sft.suites.suite import read_suite
from massive_sft.sweep.schema import Evaluation, Task


def all_tasks(evaluation: Evaluation, folder: Path) -> tuple[Task, ...]:
    """Return the benchmarks of an evaluation: its own, then its suites'; equal ones once.

    An own benchmark stands in for one of a suite that has its name: a task file ``mmlu.yaml`` for lm-eval's ``mmlu``.

    Args:
        folder: the sweep file's, where the relative path of a suite starts.

    Raises InvalidInput with all that is wrong with its suites.
    """
    problems, tasks = [], list(evaluation.tasks)
    own = {title(task) for task in evaluation.tasks if task.path is not None}
    for number, name in enumerate(evaluation.suites):
        try:
            suite = read_suite(name, folder, f"evaluation.suites[{number}]")
        except InvalidInput as error:
            problems += error.problems
        else:
            tasks += [entry.task for entry in suite.tasks if title(entry) not in own]
    if problems:
        raise InvalidInput(problems)
    return tuple(dict.fromkeys(tasks))
