"""A suite: a YAML file that names benchmarks, and for each the column of a published table that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.sweep.content import resolve_path
from massive_sft.sweep.schema import Task
from massive_sft.sweep.schema.field_types import OneOrMore, Positive, Text
from massive_sft.sweep.schema.strict_model import StrictModel
from massive_sft.sweep.yaml_errors import as_written, format_location, to_problems
from massive_sft.sweep.yaml_file import read_yaml

FOLDER = Path(__file__).parent
SUFFIXES = (".yaml", ".yml")


class SuiteTask(Task):
    """A benchmark of a suite, and what people ask of it."""

    examples: Text | None = None
    """The split whose first rows are the shots."""
    column: Text | None = None
    """The column of a published table that it stands for."""
    metric: Text | None = None
    """The score that is compared."""
    questions: Positive | None = None
    """How many it has."""
    needs: Annotated[tuple[Text, ...], OneOrMore] = ()
    """What it needs: data sets of the hub (a network, once), code execution, packages, folders."""

    @property
    def task(self) -> Task:
        """What is asked of a cell."""
        return Task(**{name: getattr(self, name) for name in Task.model_fields})


class Suite(StrictModel):
    """Benchmarks that belong together."""

    about: Text
    """What they are."""
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    """The benchmarks; a ``path`` is relative to the suite's file."""
    differs: dict[Text, Text] = Field(default_factory=dict)
    """By benchmark, how it differs from the one in the published table."""


def shipped() -> list[str]:
    """Return the names of the suites that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_suite(name: str, folder: Path, place: str) -> Suite:
    """Return a suite: one that ships with the package by its name, or a file by its path.

    Args:
        name: as written in the sweep file; ``${NAME}`` is expanded in a path.
        folder: where a relative path starts.
        place: where the name was written.

    Raises:
        InvalidInput: there is no such suite, or what is wrong with its file.
    """
    if name in shipped():
        path = FOLDER / f"{name}.yaml"
    elif name.endswith(SUFFIXES):
        path = resolve_path(name, folder, place)
    else:
        raise InvalidInput(Problem(place, "must be a suite that exists, or the path of a .yaml file", name, shipped()))
    raw = read_yaml(path)
    try:
        suite = Suite.model_validate(raw)
    except ValidationError as error:
        raise InvalidInput(
            to_problems(error, Suite, lambda at: f"{path}: {format_location(as_written(at, raw))}".removesuffix(": "))
        ) from None
    tasks = [_located(task, path.parent, f"{path}: tasks[{number}]") for number, task in enumerate(suite.tasks)]
    return suite.model_copy(update={"tasks": tuple(tasks)})


def _located(task: SuiteTask, folder: Path, place: str) -> SuiteTask:
    if task.path is None:
        return task
    return task.model_copy(update={"path": str(resolve_path(task.path, folder, f"{place}.path"))})
