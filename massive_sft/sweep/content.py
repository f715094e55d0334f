"""What a model or a dataset *is*: paths expanded, files hashed, hub revisions pinned. Names never matter here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from massive_sft.errors import InvalidInput, Problem
from massive_sft.fingerprint import FileHashes, fingerprint
from massive_sft.sweep.schema import Dataset, Model
from massive_sft.sweep.yaml_file import read_tagged

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json")
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
DATA = (".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")


def expand(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}`` by the environment's values.

    Raises:
        KeyError: with the name of a variable that is not set and has no default.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        found = environment.get(name) or default
        if found is None:
            raise KeyError(name)
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def locate(text: str, folder: Path, place: str) -> Path:
    """Return the absolute path that ``text`` means; a relative one starts at ``folder``, the sweep file's.

    Raises:
        InvalidInput: when a ``${NAME}`` in it is not set.
    """
    try:
        return (folder / Path(expand(text)).expanduser()).resolve()
    except KeyError as error:
        raise InvalidInput(
            Problem(place, f"needs the environment variable {error.args[0]}, which is not set", text)
        ) from None


@dataclass
class Contents:
    """Turns declared sources into content, remembering what could not be settled yet.

    Attributes:
        folder: where relative paths start.
        lock: hub id → {revision: commit}, written by ``fetch``.
        unpinned: hub revisions that are no commit: the ids that hang on them are provisional.
            Planning goes on with a stand-in, running refuses.
        missing: local files that are not there, by place.
    """

    folder: Path
    lock: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hashes: FileHashes = field(default_factory=FileHashes)
    unpinned: dict[str, Problem] = field(default_factory=dict)
    missing: dict[str, Problem] = field(default_factory=dict)

    def model(self, model: Model, place: str) -> dict[str, Any]:
        """Return a base model's content: ids of its weights and of its tokenizer."""
        if model.hub is not None:
            weights = tokenizer = self._hub(model.hub, model.revision, f"{place}.hub")
        else:
            weights = self._files(str(model.path), WEIGHTS, f"{place}.path")
            tokenizer = self._files(str(model.path), TOKENIZER, f"{place}.path")
        if model.tokenizer is not None:
            tokenizer = self._files(model.tokenizer, TOKENIZER, f"{place}.tokenizer")
        return {"weights": weights, "tokenizer": tokenizer}

    def dataset(self, dataset: Dataset, place: str) -> dict[str, Any]:
        """Return a dataset's content: its source and everything that decides which text its rows become."""
        if dataset.hub is not None:
            source = {
                "hub": self._hub(dataset.hub, dataset.revision, f"{place}.hub"),
                "subset": dataset.subset,
                "split": dataset.split,
                "files": list(dataset.files or ()),
            }
        else:
            source = {"files": self._files(str(dataset.path), dataset.files, f"{place}.path")}
        mapping = dataset.mapping.model_dump(mode="json", exclude_none=True)
        if dataset.mapping.messages is not None:
            mapping["turns"] = dataset.turns
        return {
            "source": source,
            "columns": mapping,
            "filter": _plain(dataset.filter),
            "limit": dataset.limit,
            "strip": sorted(dataset.strip),
        }

    def task(self, path: Path, place: str) -> str:
        """Return the content id of a benchmark's task file: its YAML, with the files it names as their hashes.

        So the id moves with the benchmark's data and functions, and not with the folder they lie in. A file that does
        not parse is known by its bytes: ``check`` says what is wrong with it.
        """
        if not path.is_file():
            self.missing[place] = Problem(place, "there is no such file", str(path))
            return f"missing:{path}"
        try:
            return "task:" + fingerprint(self._with_hashes(read_tagged(path), path.parent))
        except (YAMLError, TypeError, ValueError):
            return f"sha256:{self.hashes.of(path)}"

    def _with_hashes(self, value: Any, folder: Path) -> Any:
        if isinstance(value, Mapping):
            return {key: self._with_hashes(item, folder) for key, item in value.items()}
        if isinstance(value, list):
            return [self._with_hashes(item, folder) for item in value]
        if not isinstance(value, str) or "\n" in value or len(value) > 1024:
            return value
        if value.startswith("!function "):
            module = folder / (value.split()[1].rpartition(".")[0] + ".py")
            return [value, self.hashes.of(module)] if module.is_file() else value
        return f"sha256:{self.hashes.of(folder / value)}" if value and (folder / value).is_file() else value

    def resolve_model(self, model: Model, place: str) -> Model:
        """Return the model with absolute paths and the pinned commit."""
        changes: dict[str, Any] = {}
        for name in ("path", "tokenizer"):
            text = getattr(model, name)
            if text is not None:
                changes[name] = str(locate(text, self.folder, f"{place}.{name}"))
        if model.hub is not None:
            changes["revision"] = self.lock.get(model.hub, {}).get(model.revision, model.revision)
        return model.model_copy(update=changes)

    def resolve_dataset(self, dataset: Dataset, place: str) -> Dataset:
        """Return the dataset with an absolute path and the pinned commit."""
        if dataset.hub is not None:
            commit = self.lock.get(dataset.hub, {}).get(dataset.revision, dataset.revision)
            return dataset.model_copy(update={"revision": commit})
        return dataset.model_copy(update={"path": str(locate(str(dataset.path), self.folder, f"{place}.path"))})

    def _hub(self, name: str, revision: str, place: str) -> str:
        commit = self.lock.get(name, {}).get(revision, revision)
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            self.unpinned[place] = Problem(
                place, "is not pinned to a commit: the id may change when it moves", f"{name}@{commit}"
            )
        return f"hub:{name}@{commit}"

    def _files(self, text: str, wanted: tuple[str, ...] | None, place: str) -> str:
        """Return the content id of a file, or of the files in a folder that match ``wanted`` (none: all data files)."""
        try:
            path = locate(text, self.folder, place)
            if path.is_file():
                return f"sha256:{self.hashes.of(path)}"
            if not path.is_dir():
                raise InvalidInput(Problem(place, "there is no such file or folder", str(path)))
            files = _matching(path, wanted)
            if not files:
                rule = f"has no file that matches {', '.join(wanted)}" if wanted else "has no data file"
                raise InvalidInput(Problem(place, rule, str(path)))
            # A list, for the order in which data files are read is the order of their rows.
            return "files:" + fingerprint([[file.name, self.hashes.of(file)] for file in files])
        except InvalidInput as error:
            self.missing[place] = error.problems[0]
        except OSError as error:
            self.missing[place] = Problem(place, f"cannot be read ({error.strerror})", text)
        return f"missing:{text}"


def _plain(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter with every value as a sorted list: one value and a list of it mean the same."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else sorted(value if isinstance(value, list) else [value], key=repr)
        for key, value in rules.items()
    }


def _matching(folder: Path, wanted: tuple[str, ...] | None) -> list[Path]:
    if wanted is None:
        return sorted(file for file in folder.iterdir() if file.name.endswith(DATA))
    found = {file: None for pattern in wanted for file in sorted(folder.glob(pattern)) if file.is_file()}
    return list(found)
