"""What an lm-eval task is, as a hash: its configuration and the code that it names; and what a group is."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task

from massive_sft.core.fingerprint import fingerprint, hash_file

# Where data lies and what people call a task; the documents themselves are hashed with the requests.
_NO_IDENTITY = {"task_alias", "tag", "num_fewshot", "data_files", "data_dir", "cache_dir", "config_source"}


def config_hash(task: Task) -> str:
    """Return the hash of a task's configuration: paths left out, functions as the hash of the file they are in.

    So it is with a class of the task's own, and with those that it is made from; one of lm-eval's is a name.
    """
    fields = {key: value for key, value in vars(task.config).items() if value is not None}
    if os.path.isabs(str(fields.get("dataset_path", ""))):
        del fields["dataset_path"]
    own = [_function(kind) for kind in type(task).__mro__ if not _of_lm_eval(kind)]
    return fingerprint({"class": own or type(task).__qualname__, "config": _plain(fields)})


def _of_lm_eval(kind: type) -> bool:
    return kind in ConfigurableTask.__mro__ or kind.__module__.startswith("lm_eval.api.")


def group_content(group: Group) -> dict[str, Any]:
    """Return what a group's scores are of: its tasks' names, and the metrics that it combines and how, as JSON."""
    members = sorted(str(task.task_name) for task in group.get_all_tasks())
    return {"tasks": members, "metrics": _plain(group.aggregate_metric_list or [])}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in _NO_IDENTITY}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, re.Pattern):
        return value.pattern
    return _function(value) if callable(value) else value


def _function(value: Callable[..., Any]) -> dict[str, str]:
    named = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    try:
        source = hash_file(Path(inspect.getsourcefile(named) or ""))
    except (TypeError, OSError):
        source = "built in"
    return {"function": named.__qualname__, "source": source}
