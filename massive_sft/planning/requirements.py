"""What a sweep asks of each cell: benchmarks under a protocol, and measures. Known by content, like cells."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.asked import early_id, full_id, is_answered
from massive_sft.ledger.record import Status
from massive_sft.planning.judged import judged_benchmarks
from massive_sft.suites import all_tasks
from massive_sft.suites.declared import facts_by_task, label, shots_of, title
from massive_sft.sweep import semantics
from massive_sft.sweep.cell import Cell
from massive_sft.sweep.content import Contents, resolve_path
from massive_sft.sweep.identity import template_content
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import JudgedBenchmark, Protocol, Setting, Task, TemplateText, TextSet


@dataclass(frozen=True)
class Texts:
    """A set of texts that is measured.

    Attributes:
        name: for people.
        path, column, limit: as declared, the path absolute.
        content: id of the file's content.
    """

    name: str
    path: Path
    column: str
    limit: int | None
    content: str


@dataclass(frozen=True)
class Requirement:
    """One number wanted of a cell.

    Attributes:
        id: what a record lists when it has it: readable, and different when the declaration differs.
        task: the benchmark; None for a measure, and for one that is judged.
        judged: the benchmark that a judge scores; None for any other.
        shots: of the benchmark; None for each of its tasks' own.
        template: the training template that wraps the benchmark's prompts; None for a measure.
        measure: the measure's name; None for a benchmark.
        until: half-width in points at which an early answer to the benchmark is enough; None for a full score.
        texts: of a measure of texts; None for any other.
    """

    id: str
    task: Task | None = None
    shots: int | None = 0
    template: str | TemplateText | None = None
    measure: str | None = None
    until: float | None = None
    judged: JudgedBenchmark | None = None
    texts: Texts | None = None

    @property
    def is_benchmark(self) -> bool:
        """Whether it is a benchmark's score, and no measure."""
        return self.measure is None

    @property
    def limit(self) -> int | None:
        """How many of a benchmark's questions are asked; None for all."""
        benchmark = self.task or self.judged
        return None if benchmark is None else benchmark.limit

    @property
    def needs_weights(self) -> bool:
        """Whether it is about the cell's own weights, a snapshot's where it is trained."""
        return self.is_benchmark or self.texts is not None or self.measure == "layer_change"

    @property
    def label(self) -> str:
        """The benchmark's name with the number of shots, or the measure's."""
        if self.judged is not None:
            return judged_label(self.judged)
        return str(self.measure) if self.task is None else label(self.task, self.shots)

    @property
    def name(self) -> str:
        """For people: ``mmlu@5`` or the measure's name."""
        return self.measure or self.id.split()[0]


def judged_label(benchmark: JudgedBenchmark) -> str:
    """Return a judged benchmark's name with the number of shots, as that of any other."""
    return f"{benchmark.title}-0shot"


def find_unmet(
    requirements: Iterable[Requirement], status: Status, answers: Collection[str]
) -> tuple[Requirement, ...]:
    """Return what was asked and is not answered; of a run that diverged or was pruned nothing more is wanted."""
    if status in (Status.DIVERGED, Status.PRUNED):
        return ()
    return tuple(item for item in requirements if not is_answered(item.id, answers))


def named_templates(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the names of the templates under which benchmarks are asked for, by the requirement's id.

    A template of one's own has none.
    """
    return {item.id: item.template for item in requirements if isinstance(item.template, str)}


def several_templates(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the names of templates by what is asked in full, of the benchmarks that are asked for under several."""
    by_label: dict[str, dict[str, str]] = {}
    for item in requirements:
        if isinstance(item.template, str):
            by_label.setdefault(item.label, {})[full_id(item.id)] = item.template
    return {asked: name for named in by_label.values() if len({*named.values()}) > 1 for asked, name in named.items()}


def judge(recorded: Status, requirements: Collection[Requirement], unmet: Collection[Requirement]) -> Status:
    """Return how far a cell is for a sweep, by what the sweep asks of it and not by what others on the root asked too.

    Args:
        recorded: as its newest record, or a lease, has it.
        requirements, unmet: of the sweep.
    """
    if recorded in (Status.COMPLETE, Status.PARTIAL):
        return Status.PARTIAL if unmet else Status.COMPLETE
    answered = bool(requirements) and not unmet
    return Status.COMPLETE if recorded is Status.FAILED and answered else recorded


class Requirements:
    """What the sweep wants of each cell, worked out once per template, way of scoring and end tokens."""

    def __init__(self, sweep: Sweep, contents: Contents):
        self.sweep, self.contents = sweep, contents
        declared = all_tasks(sweep.file.evaluation, sweep.folder)
        located = [self._located(index, task) for index, task in enumerate(declared)]
        self._facts = facts_by_task(located)
        self.tasks = [(task, self._content(index, task)) for index, task in enumerate(located)]
        self._judged = judged_benchmarks(sweep, contents)
        self._refuse_equal_names()
        settings = [variant.setting for variants in sweep.variants for variant in variants]
        settings += [sweep.settings[search.setting] for search in sweep.file.search if search.setting]
        settings += [point.variant.setting for point in sweep.points]
        self._settings: dict[str | TemplateText, Setting] = {setting.template: setting for setting in settings}
        self._known: dict[Any, tuple[Requirement, ...]] = {}
        named = [item for item in sweep.file.measures if isinstance(item, str)]
        self._measures = tuple(Requirement(semantics.measure(name), measure=name) for name in named)
        self._texts = [
            self._texts_at(index, item) for index, item in enumerate(sweep.file.measures) if isinstance(item, TextSet)
        ]
        self._ends = cache(contents.end_tokens)

    def for_cell(self, cell: Cell) -> tuple[Requirement, ...]:
        """Return what is asked of a cell."""
        if cell.recipe is None:
            # A base model is compared with every setting, so it is scored under each one's template.
            groups = (self._under(template, cell) for template in self._settings)
            return tuple({item.id: item for group in groups for item in group}.values())
        return self._under(cell.recipe.setting.template, cell, self._measures)

    def _texts_at(self, index: int, declared: TextSet) -> Texts:
        """Return a set of texts with its absolute path; a file that cannot be had is noted as missing."""
        place, path = f"measures[{index}].texts", Path(declared.texts)
        content = self.contents.file(declared.texts, place)
        if place not in self.contents.missing:
            path = resolve_path(declared.texts, self.sweep.folder, place)
        return Texts(declared.title, path, declared.column, declared.limit, content)

    def _located(self, index: int, task: Task) -> Task:
        """Return a task with its absolute path; one that cannot be had is noted as missing, and stays as it is."""
        if task.path is None:
            return task
        place = f"evaluation.tasks[{index}].path"
        try:
            path = resolve_path(task.path, self.sweep.folder, self.sweep.place(place))
        except InvalidInput as error:
            self.contents.missing[place] = Problem(place, error.problems[0].rule, task.path)
            return task
        return task.model_copy(update={"path": str(path)})

    def _content(self, index: int, task: Task) -> dict[str, Any]:
        """Return what a located task is."""
        if task.path is None:
            versions = self._facts[task].versions
            return {"name": task.name} | ({"versions": versions} if versions else {})
        place = f"evaluation.tasks[{index}].path"
        if place in self.contents.missing:
            return {"file": f"missing:{task.path}"}
        return {"file": self.contents.task(Path(task.path), place)}

    def _refuse_equal_names(self) -> None:
        """Scores are told apart by the benchmark's name and shots, in tables and figures too."""
        contents: dict[str, set[str]] = {}
        for task, content in self.tasks:
            for shots in shots_of(task, self._facts[task]):
                known = contents.setdefault(label(task, shots), set())
                known.add(fingerprint({**content, "limit": task.limit}))
        for benchmark, content in self._judged:
            contents.setdefault(judged_label(benchmark), set()).add(fingerprint(content))
        twice = [name for name, known in contents.items() if len(known) > 1]
        if twice:
            place, rule = self.sweep.place("evaluation.tasks"), "two benchmarks have one name; rename a task file"
            raise InvalidInput(Problem(place, rule, name) for name in twice)

    def _under(
        self, template: str | TemplateText, cell: Cell, measures: tuple[Requirement, ...] = ()
    ) -> tuple[Requirement, ...]:
        protocol, ends = cell_protocol(self.sweep.file.evaluation.protocol, cell), self._ends(cell.model)
        key = (template, protocol, ends, cell.recipe is None, bool(measures))
        if key not in self._known:
            identity = protocol.model_dump(mode="json", exclude={"fewshot"})
            if protocol.template == "training":
                identity["text"] = fingerprint(template_content(self._settings[template]))
            scored = self._asked(template, identity, {} if ends is None else {"ends": ends})
            until = None if cell.recipe is None else self.sweep.file.evaluation.until
            texts = (_of_texts(item, protocol) for item in self._texts)
            self._known[key] = (*(_answered_early(item, until) for item in scored), *measures, *texts)
        return self._known[key]

    def _asked(
        self, template: str | TemplateText, identity: Mapping[str, Any], ends: Mapping[str, Any]
    ) -> Iterator[Requirement]:
        protocol = self.sweep.file.evaluation.protocol
        fewshot = protocol.fewshot
        sampler = fewshot.model_dump(include={"sampler"} if fewshot.sampler == "first_n" else None)
        yielded: set[str] = set()
        for task, content in self.tasks:
            facts = self._facts[task]
            about = {**content, **identity, **semantics.scoring(facts.generates, protocol.engine), "limit": task.limit}
            about |= ends if facts.generates else {}
            for shots in shots_of(task, facts):
                # Without examples nothing is drawn.
                own = {"shots": shots} | ({} if shots == 0 else {"fewshot": sampler})
                name = f"{title(task)}@{'own' if shots is None else shots} {fingerprint(about | own)}"
                if name not in yielded:
                    yield Requirement(name, task, shots, template)
                yielded.add(name)
        for benchmark, content in self._judged:
            about = {**content, **identity, **semantics.scoring(True, protocol.engine), **ends}
            yield Requirement(f"{benchmark.title}@0 {fingerprint(about)}", None, 0, template, judged=benchmark)


def _of_texts(texts: Texts, protocol: Protocol) -> Requirement:
    """Return what is asked of a cell for a set of texts; the engine and templates make no difference to it."""
    name = semantics.text_set(texts.name)
    about = {"content": texts.content, "column": texts.column, "limit": texts.limit}
    about |= {"dtype": protocol.dtype, "adapters": protocol.adapters, "semantics": semantics.MEASURE_SEMANTICS["texts"]}
    return Requirement(f"{name} {fingerprint(about)}", measure=name, texts=texts)


def _answered_early(item: Requirement, until: float | None) -> Requirement:
    """Return a benchmark's requirement that an early answer meets; itself where none is enough."""
    return item if until is None or item.judged is not None else replace(item, id=early_id(item.id, until), until=until)


def cell_protocol(protocol: Protocol, cell: Cell) -> Protocol:
    """Return how a cell is scored: merging adapters means nothing, and asks for nothing, where there is none."""
    has_adapter = cell.recipe is not None and cell.recipe.setting.method == "lora"
    return protocol if has_adapter else protocol.model_copy(update={"adapters": "unmerged"})
