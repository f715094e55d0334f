"""What a model or a dataset *is*: paths expanded, files hashed, hub revisions pinned. Names never matter here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import name_beside
from massive_sft.core.fingerprint import FileHashes, fingerprint
from massive_sft.sweep import dataset_filter as filters
from massive_sft.sweep import weight_files
from massive_sft.sweep.identity import entry_content
from massive_sft.sweep.paths import expand_variables
from massive_sft.sweep.schema import FORMATS, Dataset, Model
from massive_sft.sweep.task_content import TaskContent

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json")
# Names that tokenizers are known to be read from; a note beside them, such as tokenizer_notes.txt, is none of them.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.*.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
# Runs only under trust_remote_code: what an ``auto_map`` names and imports, and ``custom_generate/generate.py``.
CODE = ("**/*.py",)


class Commits(BaseModel):
    """Pinned commits: hub id → {revision: commit}. A model and a dataset may have one id."""

    models: dict[str, dict[str, Commit]] = {}
    datasets: dict[str, dict[str, Commit]] = {}


class Lock(BaseModel):
    """A sweep's ``lock.json``."""

    commits: Commits


def resolve_path(text: str, folder: Path, place: str) -> Path:
    """Return the absolute path that ``text`` means; a relative one starts at ``folder``, the sweep file's.

    Raises:
        InvalidInput: when a ``${NAME}`` in it is not set, nothing is left of it, or its ``~user`` is unknown.
    """
    try:
        expanded = expand_variables(text)
    except KeyError as error:
        rule = f"needs the environment variable {error.args[0]}, which is not set"
        raise InvalidInput(Problem(place, rule, text)) from None
    if not expanded:
        raise InvalidInput(Problem(place, "is empty once its variables are replaced", text))
    try:
        # Links are kept: what a data file is, its name says, and the name behind a link may say nothing.
        return Path(os.path.abspath(folder / Path(expanded).expanduser()))
    except RuntimeError:  # ~somebody, who is not known here
        raise InvalidInput(Problem(place, "names a home folder that is not known here", text)) from None


@dataclass
class Contents:
    """Turns declared sources into content, remembering what could not be settled yet.

    Attributes:
        folder: where relative paths start.
        commits: what hub revisions are pinned to.
        unpinned: hub revisions that are no commit, by place: a warning, for the ids that hang on them are provisional.
        missing: local files that are not there and variables that are not set, by place. Planning goes on with a
            stand-in, running is refused (``running.check``).
    """

    folder: Path
    commits: Commits = field(default_factory=Commits)
    hashes: FileHashes = field(default_factory=FileHashes)
    unpinned: dict[str, Problem] = field(default_factory=dict)
    missing: dict[str, Problem] = field(default_factory=dict)

    def model(self, model: Model, place: str) -> dict[str, Any]:
        """Return a base model's content: ids of its weights and of its tokenizer, with the code that may run."""
        code = CODE if model.trust_remote_code else ()
        if model.hub is not None:
            weights = tokenizer = self._hub(model.hub, self._commit(model), f"{place}.hub")
        else:
            weights = self._folder(str(model.path), ("config.json", *code), f"{place}.path", weight_files.find)
            tokenizer = self._folder(str(model.path), (*TOKENIZER, *code), f"{place}.path")
        if model.tokenizer is not None:
            tokenizer = self._folder(model.tokenizer, (*TOKENIZER, *code), f"{place}.tokenizer")
        content = entry_content(model, but=("hub", "path", "revision", "tokenizer", "trust_remote_code"))
        # A local folder's code is hashed; of a commit of the hub, the same files run other code where it is trusted.
        trusted = {"trusted": True} if model.hub is not None and model.trust_remote_code else {}
        return content | {"weights": weights, "tokenizer": tokenizer} | trusted

    def end_tokens(self, model: Model) -> tuple[int, ...] | None:
        """Return the tokens that end an answer by a local model's ``generation_config.json``; None where it names none.

        They decide scores of generation and no training. Of a hub model they are content of the pinned commit.
        """
        if model.path is None:
            return None
        try:
            read = json.loads((resolve_path(model.path, self.folder, "path") / "generation_config.json").read_bytes())
            named = read["eos_token_id"]
            return tuple(sorted({int(token) for token in (named if isinstance(named, list) else [named])}))
        except (InvalidInput, OSError, ValueError, KeyError, TypeError):  # what is missing or wrong is told elsewhere
            return None

    def dataset(self, dataset: Dataset, place: str) -> dict[str, Any]:
        """Return a dataset's content: its source and everything that decides which text its rows become."""
        if dataset.hub is not None:
            source = {
                "hub": self._hub(dataset.hub, self._commit(dataset), f"{place}.hub"),
                "subset": dataset.subset,
                "split": dataset.split,
                "files": list(dataset.files or ()),
            }
        else:
            source = {"files": self._data_files(dataset, f"{place}.path")}
        columns = entry_content(dataset.mapping)
        mapping = {key: value for key, value in columns.items() if value is not None}
        if dataset.mapping.messages is not None:
            mapping["turns"] = dataset.turns
        if dataset.columns == FORMATS["messages"] and filters.judges_texts(dataset.filter):
            # The format looks into `conversations` too. Elsewhere a row that only one of them reads is refused, here
            # it is left out.
            mapping["alone"] = True
        return entry_content(
            dataset, but=("hub", "path", "revision", "subset", "split", "files", "format", "turns")
        ) | {
            "source": source,
            "columns": mapping,
            "filter": filters.content(dataset.filter),
            "strip": sorted(set(dataset.strip)),
        }

    def task(self, path: Path, place: str) -> str:
        """Return the content id of a benchmark's task file, with what it names (``task_content``)."""
        if not path.is_file():
            self.missing[place] = _no_such("file", path, place)
            return f"missing:{path}"
        return TaskContent(self.hashes).of(path)

    def file(self, text: str, place: str) -> str:
        """Return the content id of a file; one that is not there is noted as missing."""
        return self._folder(text, (), place)

    def resolve_model(self, model: Model, place: str) -> Model:
        """Return the model with absolute paths and the pinned commit."""
        changes: dict[str, Any] = {}
        for name in ("path", "tokenizer"):
            text = getattr(model, name)
            if text is not None:
                changes[name] = self._absolute(text, f"{place}.{name}")
        if model.hub is not None:
            changes["revision"] = self._commit(model)
        return model.model_copy(update=changes)

    def resolve_dataset(self, dataset: Dataset, place: str) -> Dataset:
        """Return the dataset with an absolute path and the pinned commit."""
        if dataset.hub is not None:
            return dataset.model_copy(update={"revision": self._commit(dataset)})
        return dataset.model_copy(update={"path": self._absolute(str(dataset.path), f"{place}.path")})

    def _commit(self, source: Model | Dataset) -> str:
        pinned = self.commits.models if isinstance(source, Model) else self.commits.datasets
        return pinned.get(str(source.hub), {}).get(source.revision, source.revision)

    def _hub(self, name: str, commit: str, place: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            rule = "is not pinned to a commit: ids are provisional until `run` or `fetch` pins it"
            self.unpinned[place] = Problem(place, rule, f"{name}@{commit}")
        return f"hub:{name}@{commit}"

    def _absolute(self, text: str, place: str) -> str:
        try:
            return str(resolve_path(text, self.folder, place))
        except InvalidInput as error:
            self.missing[place] = error.problems[0]
            return text

    def _folder(
        self, text: str, patterns: tuple[str, ...], place: str, weights: Callable[[Path], list[Path]] | None = None
    ) -> str:
        """Return the content id of a folder's files, told apart by their names, or of a file.

        Args:
            patterns: of names in the folder.
            weights: finds the files that weights are loaded from; others beside them are not read.
        """
        try:
            path = resolve_path(text, self.folder, place)
            if path.is_file():
                return f"sha256:{self.hashes.of(path)}"
            if not path.is_dir():
                raise InvalidInput(_no_such("file or folder", path, place))
            files = dict.fromkeys(weights(path) if weights else ())
            files |= {file: None for pattern in patterns for file in sorted(path.glob(pattern)) if file.is_file()}
            if not files:
                raise InvalidInput(Problem(place, f"has no file that matches {', '.join(patterns)}", str(path)))
            return "files:" + fingerprint([[_name_within(file, path), self.hashes.of(file)] for file in files])
        except InvalidInput as error:
            self._lacks(place, _at(place, error.problems))
        except OSError as error:
            self._lacks(place, Problem(place, f"cannot be read ({error.strerror})", text))
        return f"missing:{text}"

    def _lacks(self, place: str, problem: Problem) -> None:
        """Remember a problem beside what a place has already: one folder holds weights and tokenizer."""
        known = self.missing.get(place, problem)
        both = known.rule if problem.rule in known.rule else f"{known.rule}; {problem.rule}"
        self.missing[place] = Problem(place, both, known.value)

    def _data_files(self, dataset: Dataset, place: str) -> str:
        """Return the content id of a local dataset's files, in reading order.

        A file is its bytes and its extension, which decides how it is read: where it lies and its name do not matter.
        """
        try:
            path = resolve_path(str(dataset.path), self.folder, place)
            files = [path / name for name in dataset.files or ("",)]
            for file in files:
                if not file.exists():
                    raise InvalidInput(_no_such("file or folder", file, place))
                if file.is_dir():
                    raise InvalidInput(Problem(place, "is a folder: name its files under files", str(file)))
                if not file.is_file():
                    raise InvalidInput(Problem(place, "is no file but a device, pipe or socket", str(file)))
            return "data:" + fingerprint([[_extension(file), self.hashes.of(file)] for file in files])
        except InvalidInput as error:
            self.missing[place] = error.problems[0]
        except OSError as error:
            self.missing[place] = Problem(place, f"cannot be read ({error.strerror})", str(dataset.path))
        return f"missing:{dataset.path}:{','.join(dataset.files or ())}"


def _at(place: str, problems: list[Problem]) -> Problem:
    """Return problems of one place as one; what is wrong with single files below it is told with their paths."""
    first = problems[0]
    if first.place == place:
        return first
    return Problem(place, "; ".join(f"{problem.place} {problem.rule}" for problem in problems), first.value)


def _no_such(what: str, path: Path, place: str) -> Problem:
    """Return that a path is not there, with the nearest name of those beside where it would be."""
    return Problem(place, f"there is no such {what}{name_beside(path)}", str(path))


def _name_within(file: Path, folder: Path) -> str:
    """Return by what name a file of a model counts; code is imported by where it lies."""
    return file.relative_to(folder).as_posix() if file.suffix == ".py" else file.name


def _extension(file: Path) -> str:
    match = re.search(r"\.[^.]+(\.gz)?$", file.name.lower())
    return match[0] if match else ""


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested content by their dotted names."""
    for key, item in content.items():
        if isinstance(item, Mapping):
            yield from flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
