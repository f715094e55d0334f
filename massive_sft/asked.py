"""What a sweep asks of each cell: benchmarks under a protocol, and measures. Known by content, like cells."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.errors import InvalidInput, Problem
from massive_sft.fingerprint import fingerprint
from massive_sft.ledger.record import Status
from massive_sft.suites import all_tasks
from massive_sft.sweep import semantics
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.content import Contents, locate
from massive_sft.sweep.identity import template_content
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import Setting, Task, TemplateText


@dataclass(frozen=True)
class Asked:
    """One number wanted of a cell.

    Attributes:
        id: what a record lists when it has it: readable, and different when the declaration differs.
        task: the benchmark; None for a measure.
        shots: of the benchmark.
        template: the training template that wraps the benchmark's prompts; None for a measure.
        measure: the measure's name; None for a benchmark.
    """

    id: str
    task: Task | None = None
    shots: int = 0
    template: str | TemplateText | None = None
    measure: str | None = None


def lacking(asked: Iterable[Asked], status: Status, answers: Collection[str]) -> tuple[Asked, ...]:
    """Return what was asked and is not answered; of a run that diverged or was pruned nothing more is wanted."""
    if status in (Status.DIVERGED, Status.PRUNED):
        return ()
    return tuple(item for item in asked if item.id not in answers)


class Questions:
    """What the sweep wants of each cell, worked out once per template."""

    def __init__(self, sweep: Sweep, contents: Contents):
        self.sweep, self.contents = sweep, contents
        self.tasks = [self._task(index, task) for index, task in enumerate(all_tasks(sweep.file.evaluation))]
        self._refuse_equal_names()
        settings = [variant.setting for variants in sweep.variants for variant in variants]
        self.by_template = {_template_id(setting): self._under(setting) for setting in settings}

    def of(self, cell: Cell) -> tuple[Asked, ...]:
        if cell.recipe is None:
            # A base model is compared with every setting, so it is scored under each one's template.
            return tuple({item.id: item for group in self.by_template.values() for item in group}.values())
        measures = (Asked(semantics.measure(name), measure=name) for name in self.sweep.file.measures)
        return (*self.by_template[_template_id(cell.recipe.setting)], *measures)

    def _task(self, index: int, task: Task) -> tuple[Task, dict[str, Any]]:
        """Return a task with its absolute path, and its declared content."""
        if task.path is None:
            return task, {"name": task.name}
        place = f"evaluation.tasks[{index}].path"
        try:
            path = locate(task.path, self.sweep.folder, f"{self.sweep.path}: {place}")
        except InvalidInput as error:
            self.contents.missing[place] = Problem(place, error.problems[0].rule, task.path)
            return task, {"file": f"missing:{task.path}"}
        return task.model_copy(update={"path": str(path)}), {"file": self.contents.task(path, place)}

    def _refuse_equal_names(self) -> None:
        """Scores are told apart by the benchmark's name and shots, in tables and figures too."""
        contents: dict[str, set[str]] = {}
        for task, content in self.tasks:
            for shots in task.shots:
                known = contents.setdefault(f"{_title(task)} at {shots} shots", set())
                known.add(fingerprint({**content, "limit": task.limit}))
        twice = [name for name, known in contents.items() if len(known) > 1]
        if twice:
            place, rule = f"{self.sweep.path}: evaluation.tasks", "two benchmarks have one name; rename a task file"
            raise InvalidInput(Problem(place, rule, name) for name in twice)

    def _under(self, setting: Setting) -> tuple[Asked, ...]:
        protocol = self.sweep.file.evaluation.protocol
        identity = protocol.model_dump(mode="json", exclude={"fewshot"}) | semantics.scoring()
        if protocol.template == "training":
            identity["text"] = _template_id(setting)
        sampler = protocol.fewshot.model_dump(include={"sampler"} if protocol.fewshot.sampler == "first_n" else None)
        found = (
            Asked(
                f"{_title(task)}@{shots} {fingerprint({**content, **identity, **more})}", task, shots, setting.template
            )
            for task, content in self.tasks
            for shots in task.shots
            if (more := {"shots": shots, "limit": task.limit, **({"fewshot": sampler} if shots else {})})
        )
        return tuple({item.id: item for item in found}.values())


def _template_id(setting: Setting) -> str:
    return fingerprint(template_content(setting))


def _title(task: Task) -> str:
    return task.name or Path(str(task.path)).stem
