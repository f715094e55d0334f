"""Whether every node of a cluster has what a sweep names there.

``check`` and ``run`` ask on the cluster that ``RAY_ADDRESS`` names. ``submit`` has a job ask before the sweep's own:
``python -m massive_sft.scheduling.cluster_paths SWEEP [OVERLAY ...]`` prints its answer as one line of JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.storage import Folder
from massive_sft.planning.plan import storage_root
from massive_sft.scheduling.cluster import connected
from massive_sft.scheduling.named_paths import VARIABLE, NamedPath, sweep_paths, task_paths
from massive_sft.sweep.content import resolve_path
from massive_sft.sweep.load import Sweep, load_sweep

PREFIX = "cluster paths: "  # of the answer's line
NODE_S = 120.0  # seconds for the nodes to answer
AGAIN_S = 0.5  # seconds before a node whose task was lost is asked again
TASK_LOST = (LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError)
NAMED = 5  # nodes that a refusal names where all of them lack the same
STORAGE = "storage.root"
KEY = "key "  # before the name of a variable, among what a node lacks


@dataclass(frozen=True)
class Answer:
    """What the nodes said.

    Attributes:
        nodes: how many were asked.
        paths: how many paths they were asked for.
        problems: place within the sweep file, rule and value of everything that is missing.
    """

    nodes: int
    paths: int
    problems: list[tuple[str, str, str]]

    def to_line(self) -> str:
        """Return the line that ``find`` finds again."""
        return PREFIX + json.dumps(asdict(self))

    @classmethod
    def find(cls, printed: str) -> Answer | None:
        """Return the answer in what a job printed; None where there is none."""
        lines = (line.removeprefix(PREFIX) for line in printed.splitlines() if line.startswith(PREFIX))
        return next((cls(**json.loads(line)) for line in lines), None)


class Wanted:
    """What each node must have. Collected on one of them, by its environment.

    Attributes:
        paths: absolute path → (place, text) of who names it.
        keys: environment variable that holds a judge's key → place of who names it.
        problems: what is wrong on every node.

    Args:
        sweep: loaded.
        is_packaged: whether the sweep file and what it names by relative paths travel with a job.
    """

    def __init__(self, sweep: Sweep, is_packaged: bool = True):
        self.sweep = sweep
        self.is_packaged = is_packaged
        self.paths: dict[str, tuple[str, str]] = {}
        judging = sweep.file.evaluation.judging
        judges = enumerate(judging.judges if judging else ())
        self.keys = {one.key: f"evaluation.judging.judges[{number}].key" for number, one in judges if one.key}
        self.problems: list[Problem] = []
        for named in sweep_paths(sweep):
            path = self._add(named)
            if path is not None and named.place.startswith("evaluation.") and path.is_file():
                self._add_named_by(path, named.place)

    def _add_named_by(self, task: Path, place: str) -> None:
        try:
            for named in task_paths(task, place, Path.cwd(), os.environ, set()):
                self._add(named)
        except InvalidInput as error:
            self.problems += error.problems

    def _add(self, named: NamedPath) -> Path | None:
        """Note a path and, of a folder, the files that are read; what is packaged is on every node already."""
        try:
            path = resolve_path(named.text, named.folder, named.place)
            if not self.is_packaged or named.is_elsewhere or VARIABLE in named.text:
                self.paths.setdefault(str(path), (named.place, named.text))
                for file in named.within(path) if path.is_dir() else ():
                    self.paths.setdefault(str(file), (named.place, str(file)))
        except InvalidInput as error:
            found = error.problems[0]
            rule = found.rule if found.place == named.place else f"{found.place} {found.rule}"
            self.problems.append(Problem(named.place, rule, named.text))
            return None
        return path


def path_problems(sweep: Sweep) -> list[Problem]:
    """Return what nodes of the cluster that this process is connected to lack of all that a sweep names."""
    found = look(Wanted(sweep, is_packaged=False)).problems
    return [Problem(sweep.place(place), rule, value) for place, rule, value in found]


def look(wanted: Wanted) -> Answer:
    """Ask every node of the cluster that this process is connected to for what a sweep names."""
    problems = wanted.problems
    with _token(wanted.sweep, problems) as token:
        missing = _ask_nodes(list(wanted.paths), list(wanted.keys), token, problems)
    names = sorted(missing)
    for key, place in wanted.keys.items():
        lacking = [name for name in names if KEY + key in missing[name]]
        if lacking:
            rule = f"must be set to the key for Ray's workers, and is not on {_told(lacking, names)}"
            problems.append(Problem(place, rule, key))
    for path, (place, text) in wanted.paths.items():
        above = {str(folder) for folder in Path(path).parents}  # where one of these is lacking, it says so
        lacking = [name for name in names if path in missing[name] and not above & missing[name]]
        if lacking:
            problems.append(Problem(place, f"there is no such file or folder on {_told(lacking, names)}", text))
    lacking = [name for name in names if token in missing[name]]
    if lacking:
        rule = f"must be a folder that all nodes share and write: a new file is not seen on {_told(lacking, names)}"
        problems.append(Problem(STORAGE, rule, wanted.sweep.file.storage.root))
    return Answer(len(names), len(wanted.paths), [(p.place, p.rule, str(p.value)) for p in problems])


@contextmanager
def _token(sweep: Sweep, problems: list[Problem]) -> Iterator[str]:
    """Yield a new file where results go, or in the nearest folder above; empty where none can be."""
    text = sweep.file.storage.root
    try:
        root = storage_root(sweep)
    except InvalidInput as error:
        problems += [Problem(STORAGE, problem.rule, text) for problem in error.problems]
        yield ""
        return
    if not isinstance(root, Folder):  # each node asks the store itself
        yield ""
        return
    if not text.startswith(VARIABLE) and not root.root.parent.is_dir():
        problems.append(Problem(STORAGE, f"there is no folder {root.root.parent} on the cluster", text))
        yield ""
        return
    folder = next(path for path in (root.root, *root.root.parents) if path.is_dir())
    file = folder / f".massive-sft-{secrets.token_hex(8)}"
    try:
        file.touch(exist_ok=False)
    except OSError as error:
        problems.append(Problem(STORAGE, f"{folder} cannot be written on the cluster ({error.strerror})", text))
        yield ""
        return
    try:
        yield str(file)
    finally:
        file.unlink(missing_ok=True)


def _ask_nodes(
    paths: Sequence[str], keys: Sequence[str], token: str, problems: list[Problem]
) -> Mapping[str, frozenset[str]]:
    """Return what each node, by name, lacks of these paths, keys and the token; one that does not answer is a problem.

    A node that leaves meanwhile is none; one whose task was lost is asked again for as long as it is there.
    """

    @ray.remote(num_cpus=0, max_retries=0)
    def lacks() -> list[str]:
        lost = [path for path in paths if not os.access(path, os.R_OK)]
        lost += [KEY + key for key in keys if not os.environ.get(key, "").strip()]
        shared = not token or (os.access(token, os.R_OK) and os.access(os.path.dirname(token), os.W_OK))
        return lost if shared else [*lost, token]

    missing: dict[str, frozenset[str]] = {}
    refused: set[str] = set()
    end = time.monotonic() + NODE_S
    while left := {name: node for name, node in _nodes().items() if name not in missing.keys() | refused}:
        if time.monotonic() >= end:
            problems += [Problem("nodes", f"must answer within {NODE_S:.0f} s", name) for name in left]
            break
        there = {name: NodeAffinitySchedulingStrategy(node, soft=False) for name, node in left.items()}
        asked = {lacks.options(scheduling_strategy=place).remote(): name for name, place in there.items()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=max(0.0, end - time.monotonic()))
        for one in answered:
            try:
                missing[asked[one]] = frozenset(ray.get(one))
            except TASK_LOST:
                time.sleep(AGAIN_S)
            except ray.exceptions.RayError as error:
                refused.add(asked[one])
                problems.append(Problem("nodes", f"must take a task ({str(error).splitlines()[0]})", asked[one]))
    return missing


def _nodes() -> dict[str, str]:
    return {_name(node): node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _name(node: Mapping[str, str]) -> str:
    return f"{node['NodeName']} ({node['NodeManagerHostname']}, {node['NodeID'][:8]})"


def _told(lacking: Sequence[str], names: Sequence[str]) -> str:
    if len(lacking) < len(names):
        return ", ".join(lacking)
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    return f"any node: {', '.join(lacking[:NAMED])}{more}"


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    asked = Wanted(load_sweep(files[0], files[1:]))
    with connected():
        print(look(asked).to_line())  # noqa: T201
