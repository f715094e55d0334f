"""The plan: what a sweep asks for, what the ledger already holds, and what is left to do. Pure and instant."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.fingerprint import FileHashes, canonical_json, digest, join_canonical
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.marker import NAME as MARKER
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.storage import Folder, Root
from massive_sft.ledger.store import CellState, Ledger
from massive_sft.planning.cautions import find_long_warmups, find_scaled_weights
from massive_sft.planning.lock import read_lock
from massive_sft.planning.requirements import Requirement, Requirements, find_unmet, judge
from massive_sft.planning.snapshot_address import bucket_address, snapshot_address
from massive_sft.planning.token_cache import TokenCache
from massive_sft.planning.trained import needs_retraining
from massive_sft.sweep import semantics
from massive_sft.sweep.cell import Cell, Cells, Recipe, make_cells
from massive_sft.sweep.content import Contents, resolve_path
from massive_sft.sweep.identity import template_content
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.point_cells import find_parked
from massive_sft.sweep.resources import ResourceRules, make_layout, scoring_resources
from massive_sft.sweep.schema import Task
from massive_sft.sweep.spec import Layout
from massive_sft.sweep.trajectory import Sharing, Trajectory, count_sharing, make_trajectories

# Outcomes that no rerun takes up again. The others are taken up: FAILED and PARTIAL by trying again what is missing.
FINAL_STATUSES = frozenset({Status.COMPLETE, Status.DIVERGED, Status.PRUNED})
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode: controls, lone surrogates (no UTF-8), separators of text


@dataclass(frozen=True)
class CellPlan:
    """One cell: how far it is and what it still lacks.

    Attributes:
        recorded: the status of its newest record, whichever sweep made that; WAITING or RUNNING without one.
        record: the name of the record that was its newest when this was planned; empty without one.
    """

    cell: Cell
    recorded: Status
    requirements: tuple[Requirement, ...]
    unmet: tuple[Requirement, ...]
    record: str = ""

    @property
    def status(self) -> Status:
        """How far it is for this sweep."""
        return judge(self.recorded, self.requirements, self.unmet)

    @property
    def is_done(self) -> bool:
        return self.status in FINAL_STATUSES

    def with_record(self, record: Record | None) -> CellPlan:
        """Return the plan of the cell after its newest record, which another process may have written since."""
        if record is None:
            return self
        return replace(self, recorded=record.status, unmet=find_unmet(self.requirements, record.status, record.answers))


@dataclass(frozen=True)
class RunPlan:
    """One trajectory: its layout, and its size where that is known.

    Attributes:
        steps_per_epoch: optimizer steps; None where the mixture's size is not known yet.
        tokens_per_epoch: from the token cache; None before the first run or check.
        needs_retraining: whether it is trained, but what is lacking needs snapshots that were removed.
        snapshots: the address that its snapshots are uploaded to; None where they stay under the storage root.
        resume_every_s: time between its resume checkpoints; None to choose by what one costs.
        gpu, chooses_gpus: the kind that its resources name, if any; whether ``cost.gpu_counts`` chooses how many.
        keeps_state: whether its training keeps its last state, for a later epoch.
        settled: epochs whose snapshots a training need not give, known once it is ordered.
        grouped_with: the runs that take their steps with it, see ``planning.adapter_groups``.
    """

    trajectory: Trajectory
    layout: Layout
    cells: tuple[CellPlan, ...]
    steps_per_epoch: int | None
    tokens_per_epoch: int | None
    needs_retraining: bool
    snapshots: str | None = None
    resume_every_s: float | None = None
    gpu: str | None = None
    keeps_state: bool = False
    settled: frozenset[int] = frozenset()
    chooses_gpus: bool = False
    grouped_with: tuple[RunPlan, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a sweep means and what is left of it.

    Attributes:
        storage: the storage root.
        base: the base models' cells.
        tasks: the benchmarks, the file's own first, with absolute paths.
        warnings: what the user should know; nothing here stops a run.
        missing: local files that are not there: ids are provisional and a run is refused.
        unpinned: hub revisions that are no commit: ids are provisional.
        undecided: why a number of GPUs could not be chosen (``gpus: auto``): a run is refused.
    """

    sweep: Sweep
    storage: Root
    runs: tuple[RunPlan, ...]
    base: tuple[CellPlan, ...]
    tasks: tuple[Task, ...]
    warnings: tuple[Problem, ...]
    missing: tuple[Problem, ...]
    unpinned: tuple[Problem, ...]
    undecided: tuple[Problem, ...] = ()

    @property
    def root(self) -> Path:
        """Where files of the storage root lie on this machine: caches, and whatever is written in place."""
        return self.storage.local()

    @cached_property
    def rules(self) -> ResourceRules:
        """Which rule of ``resources`` each training run has."""
        return ResourceRules(self.sweep)

    @cached_property
    def cells(self) -> tuple[CellPlan, ...]:
        return (*(cell for run in self.runs for cell in run.cells), *self.base)

    @cached_property
    def statuses(self) -> Counter[Status]:
        return Counter(cell.status for cell in self.cells)

    @cached_property
    def sharing(self) -> Sharing:
        return count_sharing(run.trajectory for run in self.runs)

    @property
    def todo(self) -> tuple[RunPlan, ...]:
        """Trajectories with something left to do."""
        return tuple(run for run in self.runs if not all(cell.is_done for cell in run.cells))

    @property
    def uses_gpus(self) -> bool:
        """Whether ``resources`` give any training, or scoring, a GPU; models are scored where they are trained."""
        return scoring_resources(self.sweep.file.resources).gpus > 0

    def open_ledger(self, create: bool = True) -> Ledger:
        """Open the ledger at the storage root, as ``Ledger.open``; what is wrong with it names the sweep file."""
        place = storage_place(self.sweep)
        if not create and not self.storage.exists():
            raise InvalidInput(Problem(place, "holds nothing yet: run the sweep first", str(self.storage)))
        return Ledger.open(self.storage, create, place)


def storage_place(sweep: Sweep) -> str:
    """Return the place of what is wrong with a sweep's storage root."""
    return sweep.place("storage.root")


def storage_root(sweep: Sweep) -> Root:
    """Return the storage root: an absolute folder, or a bucket.

    Raises:
        InvalidInput: when a ``${NAME}`` in it is not set, it is an address of something else, or it has a character
            that messages, shells and address files cannot carry.
    """
    place, text = storage_place(sweep), sweep.file.storage.root
    if text.startswith("s3://"):
        return BucketRoot.of(bucket_address(text, place))
    root = resolve_path(text, sweep.folder, place)
    if "://" in text:
        rule = "must be a folder (local disk, NFS, Lustre), or s3://BUCKET/PREFIX"
        raise InvalidInput(Problem(place, rule, redact(text)))
    if any(unicodedata.category(character) in UNPRINTABLE for character in str(root)):
        rule = "must be a path of printable characters: no line breaks, control characters or bytes that are no text"
        raise InvalidInput(Problem(place, rule, str(root)))
    return Folder(root)


StatesOf = Callable[[Ledger, Mapping[str, str | None]], dict[str, CellState]]
"""Tells how far cells are, as ``Ledger.states`` and ``Ledger.listed_states``."""


def make_plan(sweep: Sweep, states_of: StatesOf = Ledger.listed_states) -> Plan:
    """Plan a sweep against the ledger at its storage root (which need not exist yet); nothing is written there.

    Args:
        states_of: how the ledger is asked. What does something about a plan, and not only shows it, passes
            ``Ledger.states``, which also sees records that were changed in place.

    Raises:
        InvalidInput: for contradictions that only show when names are replaced by contents.
        Unsupported: when the ledger is of a newer schema.
    """
    storage = storage_root(sweep)
    contents = Contents(sweep.folder, read_lock(storage, sweep.file.name), FileHashes())
    cells = make_cells(sweep, contents)
    requirements = Requirements(sweep, contents)
    plans = {plan.cell.id: plan for plan in _cell_plans(cells, requirements, _states(sweep, cells, storage, states_of))}
    rules = ResourceRules(sweep)
    about = (sweep, storage, snapshot_address(sweep), plans, rules, _TokenCounts(storage.local()))
    parked = find_parked(sweep, contents)
    runs = [_run_plan(run, run.id in parked, *about) for run in make_trajectories(cells.cells)]
    contents.hashes.save()
    return Plan(
        sweep=sweep,
        storage=storage,
        runs=tuple(runs),
        base=tuple(plan for plan in plans.values() if plan.cell.recipe is None),
        tasks=tuple(task for task, _ in requirements.tasks),
        warnings=(
            *cells.warnings,
            *find_long_warmups(sweep, runs),
            *rules.warnings([run.trajectory.recipe for run in runs]),
            *find_scaled_weights(sweep),
        ),
        missing=_placed(sweep, contents.missing.values()),
        unpinned=_placed(sweep, contents.unpinned.values()),
    )


def _placed(sweep: Sweep, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(Problem(sweep.place(item.place), item.rule, item.value) for item in problems)


def _states(sweep: Sweep, cells: Cells, storage: Root, states_of: StatesOf) -> Mapping[str, CellState]:
    if not storage.exists(MARKER):
        return {}
    trajectories = {cell.id: cell.recipe.id if cell.recipe else None for cell in cells.cells}
    return states_of(Ledger.open(storage, create=False, place=storage_place(sweep)), trajectories)


def _cell_plans(cells: Cells, requirements: Requirements, states: Mapping[str, CellState]) -> Iterable[CellPlan]:
    for cell in cells.cells:
        wanted, state = requirements.for_cell(cell), states.get(cell.id, CellState(Status.WAITING))
        yield CellPlan(cell, state.status, wanted, find_unmet(wanted, state.status, state.answers), state.record)


def _run_plan(
    run: Trajectory,
    is_parked: bool,
    sweep: Sweep,
    storage: Root,
    snapshots: str | None,
    plans: Mapping[str, CellPlan],
    rules: ResourceRules,
    counts: _TokenCounts,
) -> RunPlan:
    cells = tuple(plans[cell.id] for cell in run.cells)
    samples, tokens = counts.of(run.recipe)
    if samples is None and run.recipe.setting.truncation != "drop":  # how many are dropped shows in the cache only
        samples = run.recipe.mixture.size
    every, rule = sweep.file.storage.resume_every, rules.find(run.recipe)
    return RunPlan(
        trajectory=run,
        layout=make_layout(rule),
        cells=cells,
        steps_per_epoch=None if samples is None else math.ceil(samples / run.recipe.setting.batch),
        tokens_per_epoch=tokens,
        needs_retraining=needs_retraining(storage, run, cells),
        snapshots=snapshots,
        resume_every_s=None if every == "auto" else every,
        gpu=rule.gpu if rule else None,
        keeps_state=run.can_be_extended and (is_parked or sweep.file.storage.keep_state == "last"),
        chooses_gpus=rule is not None and rule.gpus == "auto",
    )


def token_key(recipe: Recipe) -> str:
    """Return the key of a mixture's tokenised samples: its content, the tokenizer, and what shapes the text."""
    setting = recipe.setting
    text = {
        "template": template_content(setting),
        "loss_on": setting.loss_on,
        "max_length": setting.max_length,
        "truncation": setting.truncation,
    }
    tokenizer = json.loads(recipe.parts["base"])["tokenizer"]
    parts = {key: recipe.parts[key] for key in ("data", "train_semantics")}
    return digest(join_canonical({**parts, "text": canonical_json(text), "tokenizer": canonical_json(tokenizer)}))


def perplexity_key(recipe: Recipe) -> str:
    """Return the key of a mixture's perplexities under its base model."""
    measure = semantics.measure("perplexity")
    return digest(token_key(recipe) + recipe.parts["base"] + recipe.setting.precision + measure)


class _TokenCounts:
    """What the token cache under a root knows of training sets, each looked up once."""

    def __init__(self, root: Path):
        self._cache = TokenCache(root)
        self._known: dict[str, tuple[int | None, int | None]] = {}

    def of(self, recipe: Recipe) -> tuple[int | None, int | None]:
        """Return samples and tokens of an epoch; None where nothing is cached, or nothing readable."""
        key = token_key(recipe)
        if key not in self._known:
            self._known[key] = self._read(key)
        return self._known[key]

    def _read(self, key: str) -> tuple[int | None, int | None]:
        try:
            total = self._cache.read(key)["counts"]["total"]
            return int(total["samples"]), int(total["tokens"])
        except (KeyError, TypeError, ValueError):
            return None, None


def require_local_files(plan: Plan) -> None:
    """Refuse to run while local files are missing. Raises InvalidInput with all of them."""
    if plan.missing:
        raise InvalidInput(plan.missing)
