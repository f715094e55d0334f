"""The Hugging Face hub: which commit a revision is, whether it may be read, and its files in this node's cache.

The cache's layout is the hub library's own (docs: "Understand caching"): ``models--org--name/refs/<revision>`` holds a
commit, ``snapshots/<commit>/`` the files, links to blobs that are named by their SHA-256 where the hub knows it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import hash_file
from massive_sft.sweep import weight_files
from massive_sft.sweep.content import CODE, TOKENIZER, WEIGHTS
from massive_sft.sweep.schema import Dataset, Model

Kind = Literal["model", "dataset"]
# What the hub library raises: its HTTP library's own errors, whichever that is, are bases of its own.
HUB_ERRORS: Any = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
ANSWERS_WITHIN_S = 10.0  # as the hub's library waits
ASKED_ANEW_S = 60.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Repository:
    """One repository of the hub at a revision, and which of its files are needed.

    Attributes:
        place: where the sweep file names it.
        patterns: of file names; empty for all.
        needed: groups of patterns; of each, some file must be there.
    """

    kind: Kind
    id: str
    revision: str
    place: str
    patterns: tuple[str, ...] = ()
    needed: tuple[tuple[str, ...], ...] = ()

    def wants(self, name: str) -> bool:
        return not self.patterns or _matches(name, self.patterns)

    def lacks(self, names: Iterable[str]) -> str:
        """Return what is needed and not among ``names``, for people; empty when all is there."""
        known = list(names)
        return ", ".join(" or ".join(one) for one in self.needed if not any(_matches(name, one) for name in known))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name in a repository matches a pattern; a ``*`` stays within one folder, ``**/`` is any."""
    for pattern in patterns:
        anywhere = pattern.removeprefix("**/")
        own = name.rpartition("/")[2] if anywhere != pattern else name
        if own.count("/") == anywhere.count("/") and fnmatch.fnmatchcase(own, anywhere):
            return True
    return False


@dataclass(frozen=True)
class Pinned:
    """A repository at a commit.

    Attributes:
        sizes: bytes by name of the files that are needed.
        here: whether all of them are in this node's cache.
    """

    repository: Repository
    commit: str
    sizes: Mapping[str, int]
    here: bool


def repository_of(source: Model | Dataset, place: str) -> Repository:
    """Return what a model or dataset with a ``hub`` id needs."""
    if isinstance(source, Dataset):
        patterns = (*source.files, "README.md") if source.files else ()
        needed = tuple((name,) for name in source.files or ())
        return Repository("dataset", str(source.hub), source.revision, place, patterns, needed)
    code = CODE if source.trust_remote_code else ()
    indexes = tuple(f"{name}.index.json" for name in weight_files.SINGLE)
    patterns = (*WEIGHTS, *TOKENIZER, "generation_config.json", weight_files.ADAPTER, *indexes, *code)
    return Repository("model", str(source.hub), source.revision, place, patterns, ((*weight_files.SINGLE, *indexes),))


def kind_of(source: Model | Dataset) -> Kind:
    """Return what the hub calls a model or dataset."""
    return "dataset" if isinstance(source, Dataset) else "model"


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` forbids the network."""
    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def not_asking_in_vain() -> Iterator[None]:
    """Let a block that loads data take what is in this node's cache, and ask the hub only where that answers.

    The libraries try six times for each data set, which takes 23 seconds and more. Other servers are asked as ever.
    """
    if is_offline() or _answers(_period()):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _period() -> int:
    return int(time.monotonic() / ASKED_ANEW_S)


@functools.lru_cache(maxsize=1)
def _answers(_period: int) -> bool:
    """Return whether the hub says anything; asked once within a period."""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWERS_WITHIN_S)
    except HUB_ERRORS:
        return False
    return True


def cache_folder() -> Path:
    """Return this node's cache of the hub."""
    return Path(constants.HF_HUB_CACHE)


def pinned_folder(source: Model | Dataset) -> Path | None:
    """Return the folder in this node's cache of a model or dataset that is pinned to a commit; None where it has none.

    What is read from there needs no network and cannot move. A library that loads single files leaves a folder of these
    alone: that is none, where the others can be had. The libraries would take a folder of that name below the working
    directory for the repository, so where there is one all files are brought into the cache.

    Raises:
        InvalidInput: there is such a folder, and the repository cannot be had.
    """
    if source.hub is None or not _COMMIT.fullmatch(source.revision):
        return None
    folder = cached(kind_of(source), source.hub, source.revision)
    if folder is not None and _has_all(folder, source):
        return folder
    return download(resolve(repository_of(source, source.hub))) if Path(source.hub).is_dir() else None


def _has_all(folder: Path, source: Model | Dataset) -> bool:
    """Return whether a folder of the cache has all that is read of a source, as far as that can be known.

    Only of a dataset whose files are not named the hub has to be asked; where it does not answer, what is there counts.
    """
    if isinstance(source, Model):
        names = [path.name for path in folder.iterdir()]
        has_tokenizer = source.tokenizer is not None or any(_matches(name, TOKENIZER) for name in names)
        return is_offline() or ("config.json" in names and has_tokenizer and weight_files.are_there(folder))
    files = source.files or ()
    if files and not any(_PATTERN.search(name) for name in files):
        return all((folder / name).exists() for name in files)
    return is_offline() or _lacks_nothing(str(source.hub), source.revision, files, _period())


@functools.lru_cache(maxsize=64)
def _lacks_nothing(identity: str, commit: str, files: tuple[str, ...], period: int) -> bool:
    """Return whether all of a dataset's files are here, or nobody tells which there are; asked once within a period."""
    try:
        named = repository_of(Dataset(hub=identity, revision=commit, files=files or None, format="messages"), identity)
        return not _answers(period) or resolve(named).here
    except InvalidInput:
        return True


def cached(kind: Kind, identity: str, revision: str) -> Path | None:
    """Return the folder of a repository's snapshot in this node's cache; None where it has none."""
    home = cache_folder() / f"{kind}s--{identity.replace('/', '--')}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (home / "refs" / revision).read_text().strip()
        except OSError:
            return None
    folder = home / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def resolve(repository: Repository) -> Pinned:
    """Find a repository's commit and whether it may be read: from the hub, or offline from the cache.

    Raises:
        InvalidInput: it does not exist, is gated, lacks a file that is needed, or nobody answers.
    """
    if is_offline():
        folder = cached(repository.kind, repository.id, repository.revision)
        if folder is None:
            rule = (
                "is not in this node's cache, and HF_HUB_OFFLINE forbids to ask; run `fetch` where there is a network"
            )
            raise InvalidInput(Problem(repository.place, rule, _name(repository)))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        if lacking := repository.lacks(names):
            rule = f"lacks {lacking} in this node's cache, and HF_HUB_OFFLINE forbids to ask"
            raise InvalidInput(Problem(repository.place, rule, _name(repository)))
        sizes = {name: (folder / name).stat().st_size for name in _read(repository, names)}
        return Pinned(repository, folder.name, sizes, here=True)
    try:
        api = HfApi()
        api.auth_check(repository.id, repo_type=repository.kind)
        info: Any = api.repo_info(
            repository.id, revision=repository.revision, repo_type=repository.kind, files_metadata=True
        )
    except HUB_ERRORS as error:
        raise InvalidInput(Problem(repository.place, _reason(repository, error), _name(repository))) from error
    files = {item.rfilename: item.size or 0 for item in info.siblings or ()}
    if lacking := repository.lacks(files):
        raise InvalidInput(Problem(repository.place, f"has no file that matches {lacking}", _name(repository)))
    sizes = {name: files[name] for name in _read(repository, files)}
    folder = cached(repository.kind, repository.id, str(info.sha))
    return Pinned(
        repository, str(info.sha), sizes, folder is not None and all((folder / name).exists() for name in sizes)
    )


def download(pinned: Pinned) -> Path:
    """Bring a repository's files into this node's cache, those that are there already left alone; return their folder.

    Raises:
        InvalidInput: the hub or the disk refuses.
    """
    repository = pinned.repository
    folder = cached(repository.kind, repository.id, pinned.commit)
    if pinned.here and folder is not None:
        return folder
    try:
        done = snapshot_download(
            repository.id, repo_type=repository.kind, revision=pinned.commit, allow_patterns=sorted(pinned.sizes)
        )
    except HUB_ERRORS as error:
        raise InvalidInput(Problem(repository.place, _reason(repository, error), _name(repository))) from error
    return Path(str(done))


def hashes(pinned: Pinned, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a repository's files by name; a blob that is named by it is not read again."""
    found = {}
    for name in sorted(pinned.sizes):
        blob = (folder / name).resolve().name
        found[name] = blob if _SHA256.fullmatch(blob) else hash_file(folder / name)
    return found


def _read(repository: Repository, names: Iterable[str]) -> list[str]:
    """Return the names of the files that are needed: of a model's weights those that are loaded.

    Raises:
        InvalidInput: the model is an adapter.
    """
    wanted = [name for name in names if repository.wants(name)]
    if repository.kind == "dataset":
        return wanted
    if weight_files.ADAPTER in wanted:
        raise InvalidInput(Problem(repository.place, weight_files.IS_ADAPTER, _name(repository)))
    loaded = weight_files.select(wanted)
    return [name for name in wanted if name in loaded or not name.endswith((".safetensors", ".bin", ".index.json"))]


def _name(repository: Repository) -> str:
    return f"{repository.id}@{repository.revision}"


def _reason(repository: Repository, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return gated(repository.kind, repository.id)
    if isinstance(error, RevisionNotFoundError):
        return f"has no such revision on {constants.ENDPOINT}"
    if isinstance(error, RepositoryNotFoundError):
        return unknown(repository.kind)
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"cannot be fetched: {first[:200]}"


def gated(kind: Kind, identity: str) -> str:
    """Return what is wrong with a repository whose terms have to be accepted, and what helps."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{identity}"
    return f"is gated: accept its terms at {page} and name your token in HF_TOKEN (or `hf auth login`)"


def unknown(kind: Kind) -> str:
    """Return what is wrong with a repository that the hub does not know, or hides."""
    return f"is no {kind} on {constants.ENDPOINT}, or a private one that HF_TOKEN does not open"


def resolve_all(repositories: Iterable[Repository]) -> list[Pinned]:
    """Resolve every repository. Raises InvalidInput with the problems of all."""
    pinned, problems = [], []
    for repository in repositories:
        try:
            pinned.append(resolve(repository))
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return pinned
