"""Data sets of the hub through the ``datasets`` library: those that are trained on, and those that benchmarks read.

Each stays at the commit that a sweep's ``lock.json`` has. The library takes seconds to import: who needs it does so.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem, describe_error
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.rows import Record
from massive_sft.models.hub import HUB_ERRORS, gated, pinned_folder, unknown
from massive_sft.planning.lock import DataCommits
from massive_sft.sweep.schema import Dataset

_SAID = 200  # characters of the library's own message: it may list every extension it knows


class NoDataset(MassiveSFTError):
    """A dataset of the hub cannot be had on this node; the text names it and says why."""


def why_not_had(path: str, error: Exception) -> str | None:
    """Return why the hub's library could not load one of its datasets, as a rule; None where that is another matter."""
    from datasets.exceptions import DatasetNotFoundError

    if isinstance(error, DatasetNotFoundError) and "gated" in str(error):
        return gated("dataset", path)
    if isinstance(error, DatasetNotFoundError):
        return unknown("dataset")
    if isinstance(error, ConnectionError) or "Couldn't find cache" in str(error):
        why = "the hub does not answer or may not be asked (HF_HUB_OFFLINE)"
        return f"is not in this node's cache, and {why}: run `check` where it does"
    return None


def hub_records(dataset: Dataset, place: str) -> Iterator[Record]:
    """Yield the rows of a dataset at its revision. Raises InvalidInput where it cannot be loaded."""
    import datasets
    from datasets.exceptions import DatasetsError

    name = f"{dataset.hub}[{dataset.split}]"
    folder = pinned_folder(dataset)
    try:
        with environment_kept():
            table = datasets.load_dataset(
                str(folder or dataset.hub),
                dataset.subset,
                split=dataset.split,
                revision=None if folder else dataset.revision,
                data_files=list(dataset.files) if dataset.files else None,
            )
    except (*HUB_ERRORS, ValueError, DatasetsError) as error:
        said = " ".join(str(error).split()) or type(error).__name__  # a later line has what there is
        rule = why_not_had(str(dataset.hub), error) or f"cannot be loaded: {said[:_SAID]}"
        raise InvalidInput(Problem(f"{place}.hub", rule, dataset.hub)) from error
    for batch in table.iter(batch_size=1024):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield Record(dict(zip(columns, values, strict=True)), name, None)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Within this, ``datasets`` leaves the environment as it is while it looks for files.

    For the sake of progress bars it empties ``os.environ`` and writes it anew in every load. Native threads that look
    for a variable meanwhile, Ray's among them, find none, or end the process: C's ``getenv`` is not made for that.
    """
    from datasets.download import download_manager

    name = "stack_multiprocessing_download_progress_bars"
    with mock.patch.object(download_manager, name, nullcontext, create=True):  # of other versions perhaps not there
        yield


def know_functions_by_their_files() -> None:
    """Have ``datasets`` run ``map`` and ``filter`` again where the file of their function is another.

    It keeps what they made under a hash of the function's pickle, which of a function of a module is its name alone.
    """
    from datasets.utils._dill import Pickler

    save = Pickler.dispatch[FunctionType]

    def save_with_its_file(pickler: Any, function: FunctionType) -> None:
        with suppress(OSError):  # no file holds it
            pickler.save(hash_file(Path(function.__code__.co_filename)))
            pickler.write(pickle.POP)  # it is no part of what is loaded
        save(pickler, function)

    Pickler.dispatch[FunctionType] = save_with_its_file


@contextmanager
def at_commits(commits: DataCommits) -> Iterator[None]:
    """Within this, ``datasets.load_dataset`` loads what is in ``commits`` at its commit, unless it is told another.

    What the library keeps of that commit on this machine is taken from there, and needs no network. Where the hub does
    not answer and there is no such thing, the library takes the newest that it keeps, of whatever commit.

    Raises ``NoDataset`` there where a dataset cannot be had.
    """
    import datasets

    load, known = datasets.load_dataset, dict(commits)

    def loaded(path: str, name: str | None = None, **options: Any) -> Any:
        try:
            return found(path, name, **options)
        except (OSError, ValueError) as error:
            rule = why_not_had(path, error)
            if rule is None:
                raise
            which = path if name is None else f"{path} ({name})"
            raise NoDataset(f"the dataset {which} {rule} ({describe_error(error)})") from error

    def found(path: str, name: str | None, **options: Any) -> Any:
        commit = known.get(path)
        if commit is None or options.get("revision") is not None or Path(path).is_dir():
            return load(path, name, **options)
        kept = None if any(value is not None for value in options.values()) else _kept(path, name, commit)
        return load(path, name, **(options | {"revision": commit})) if kept is None else kept

    with mock.patch.object(datasets, "load_dataset", loaded), environment_kept():
        yield


def _kept(path: str, name: str | None, commit: str) -> Any:
    """Return what the library's cache has of one configuration at a commit; None where that is nothing."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, own = path.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(own)])
    places = sorted(folder.glob(f"{name or '*'}/*/{commit}"))
    if len(places) != 1:
        return None
    config, version = places[0].parts[-3:-1]
    builder = Cache(dataset_name=own, config_name=config, version=version, hash=commit, repo_id=path)
    builder.download_and_prepare()
    return builder.as_dataset()
