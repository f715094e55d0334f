"""Searches decide the same whatever happens: any number of lanes, kills at any point, other names."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3Server, s3
from sample_records import made_record, number_of, sweep_file

from massive_sft.core.errors import Corrupt, InvalidInput
from massive_sft.core.fingerprint import digest
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.record import INVALIDATED, Status
from massive_sft.ledger.storage import Folder, Root
from massive_sft.planning.plan import CellPlan, make_plan
from massive_sft.running.search_work import with_first_decisions
from massive_sft.search.confirming import most_confirmations
from massive_sft.search.coordinates import Coordinate
from massive_sft.search.decider import Decider
from massive_sft.search.deciding import next_ask
from massive_sft.search.deciding_cells import judge_stop, next_cell
from massive_sft.search.decision_log import DecisionLog
from massive_sft.search.importance import importances
from massive_sft.search.outcomes import Outcome
from massive_sft.search.plan import Planned, make_whole_plan, plan_searches
from massive_sft.search.proposing import Tried, propose, rebuilt
from massive_sft.search.rules import Decision, Given
from massive_sft.search.space import Axis
from massive_sft.search.standing import Standing
from massive_sft.search.untried import untried
from massive_sft.search.view import decision_line
from massive_sft.sweep.load import load_sweep

__all__ = ["s3"]  # a fixture
TPE: dict[str, Any] = {
    "name": "s", "model": "small", "mixture": "first", "setting": "lora", "objective": {"maximize": "quiz"},
    "space": {"lr": {"log": [1e-5, 1e-3]}, "lora.rank": {"powers_of_2": [4, 16]}, "batch": [16, 32],
              "lora.alpha": {"times": "lora.rank", "by": [1, 2]}},
    "sampler": "tpe", "trials": 12, "at_once": 4, "start": {"qmc": 5},
}  # fmt: skip
GRID = TPE | {
    "space": {"lr": [1e-5, 1e-4, 1e-3], "mixture": "one"},
    "mixture": "one",
    "trials": 9,
    "sampler": "auto",
    "start": {"qmc": 2},
}
RUNGS = TPE | {"horizon": 9, "rungs": {"at": [1, 3, 9], "keep": "1/3"}}
OVER: dict[str, Any] = {
    "name": "s", "over": ["A"], "objective": {"maximize": ["quiz", "prose"], "for_each": "model"}, "at_once": 3,
    "stop": {"regret": "5%", "probability": 0.9},
}  # fmt: skip
WEIGHTS: dict[str, Any] = {
    "name": "s", "model": "small", "setting": "lora", "objective": {"maximize": "quiz"}, "sampler": "gp", "trials": 9,
    "mixture": {"samples": 1000, "weights": {"first": [0.05, 0.8], "second": [0.1, 0.9]}}, "at_once": 4,
    "start": {"singles": True, "all": True}, "confirm": {"top": 2, "seeds": [0, 1, 2]},
}  # fmt: skip
ALONE: dict[str, Any] = {"blocks": []}


def planned(folder: Path, search: Mapping[str, Any], **changes: Any) -> Planned:
    folder.mkdir(parents=True, exist_ok=True)
    return plan_searches(load_sweep(sweep_file(folder, **(ALONE | {"search": [search]} | changes))))[0]


class Killed(BaseException):
    """A process was killed here."""


class World:
    """Trainings with outcomes that hang on the cell alone, and durations that hang on chance."""

    def __init__(self, folder: Path | Root, one: Planned, lanes: int = 1, chance: int = 0, deaths: float = 0.0):
        root = Folder(folder / "root") if isinstance(folder, Path) else folder
        self.one, self.lanes, self.root, self.deaths = one, lanes, root, deaths
        self.random = random.Random(chance)
        self.done: set[int] = set()

    def outcome(self, entry: Decision) -> Outcome | None:
        if entry["n"] not in self.done:
            return None
        luck = int(digest(entry["cell"])[:4], 16) / 16**4
        if luck < 0.25:
            return Outcome("diverged" if luck < 0.15 else "given_up" if luck < 0.2 else "infeasible")
        return Outcome("complete", {"quiz": 100 * luck, "prose": 1 - luck}, {"quiz": 1.0})

    def decider(self) -> Decider:
        log = DecisionLog(self.root, self.one.id)
        base: Callable[[Decision], Outcome | None] = lambda entry: Outcome("complete", {"quiz": 30.0, "prose": 1.0})  # noqa: E731
        decider = Decider(self.one.rules, log, lambda: self.one.content, self.outcome, base)
        assert decider.lead()
        return decider

    def run(self) -> dict[str, bytes]:
        """Run the search to its end; return its files."""
        while True:
            decider = self.decider()
            try:
                self._run(decider)
                break
            except Killed:
                continue
            finally:
                decider.release()  # as the ledger does once it sees that its owner is gone
        return self.files()

    def _run(self, decider: Decider) -> None:
        ends: dict[int, float] = {}  # of what is being trained
        now = 0.0
        while not (decider.is_over and not decider.left()):
            if self.random.random() < self.deaths:
                raise Killed
            decider.advance()
            waiting = [entry["n"] for entry in decider.left() if entry["n"] not in ends]
            for number in waiting[: self.lanes - len(ends)]:
                ends[number] = now + self.random.expovariate(1)
            if ends:
                first = min(ends, key=lambda number: ends[number])
                now = ends.pop(first)
                self.done.add(first)

    def files(self) -> dict[str, bytes]:
        log = self.root.at(f"searches/{self.one.id}")
        names = ["search.json", *sorted(f"decisions/{item.name}" for item in log.list("decisions"))]
        return {name: log.get(name).data for name in names}


@pytest.mark.parametrize(
    "search",
    [
        TPE,
        GRID,
        TPE | {"sampler": "qmc", "objective": {"maximize": ["quiz", "prose"]}},
        TPE | {"sampler": "random", "model": "all", "objective": {"maximize": "quiz", "for_each": "model"}},
        RUNGS,
        TPE | {"constraints": {"quiz": {"at_least": "base - 5"}}, "objective": {"minimize": "prose"}},
    ],
    ids=["tpe", "grid", "qmc", "random", "rungs", "constrained"],
)
def test_log_is_the_same_with_any_lanes_and_kills(tmp_path: Path, search: dict[str, Any]) -> None:
    one = planned(tmp_path / "sweep", search)
    first = World(tmp_path / "first", one).run()
    asks = [json.loads(data)["content"] for name, data in first.items() if name.startswith("decisions")]
    cells = [entry["cell"] for entry in asks if entry["kind"] == "ask"]
    assert len(cells) == len(set(cells)) == (6 if search is GRID else 12)
    for chance, lanes in enumerate((2, 8), 1):
        assert World(tmp_path / str(chance), one, lanes, chance, deaths=0.2).run() == first


def test_log_in_a_bucket_is_that_of_a_folder(s3: S3Server, tmp_path: Path) -> None:
    one = planned(tmp_path / "sweep", TPE)
    far = World(BucketRoot(BUCKET, "a/study"), one, 3, 7, 0.1).run()
    assert far == World(tmp_path / "near", one).run()


def test_search_over_cells_stops_when_it_is_sure_enough_and_is_the_same_with_kills(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    one = plan_searches(load_sweep(sweep_file(tmp_path / "sweep", search=[OVER])))[0]
    assert one.space.size == 16
    first = World(tmp_path / "first", one).run()
    entries = [json.loads(data)["content"] for name, data in first.items() if name.startswith("decisions")]
    assert entries[-1]["kind"] in ("ask", "stop")
    judged = [entry for entry in entries if entry["kind"] in ("stop", "go_on")]
    assert [entry["why"]["probability"] >= 0.9 for entry in judged] == [entry["kind"] == "stop" for entry in judged]
    assert World(tmp_path / "again", one, 4, 1, deaths=0.2).run() == first
    outcomes = World(tmp_path / "first", one).decider().outcomes()
    found = Standing(one, entries, outcomes, {}, (), is_over=True)
    best = {answer.of: [one.named(entry)["cell"] for entry in answer.entries] for answer in found.answers}
    assert list(best) == ["quiz, large", "prose, large", "quiz, small", "prose, small"], "an answer each, as was asked"
    assert all(model in cells[0] for model in ("large", "small") for of, cells in best.items() if model in of)
    said = list(untried(found))
    assert said[0].startswith(f"{16 - len(found.asks)} of 16 cells were not tried: ")
    assert said[-1].startswith("of most promise: ")


def test_best_of_each_model_and_objective_are_confirmed(tmp_path: Path) -> None:
    confirmed = OVER | {"trials": 7, "stop": None, "confirm": {"top": 1, "seeds": [0, 7]}}
    (tmp_path / "sweep").mkdir()
    one = plan_searches(load_sweep(sweep_file(tmp_path / "sweep", search=[confirmed])))[0]
    world = World(tmp_path / "first", one)
    first = world.run()
    entries = [json.loads(data)["content"] for name, data in first.items() if name.startswith("decisions")]
    found = Standing(one, entries, world.decider().outcomes(), {}, (), is_over=True)
    winners = {entry["n"] for answer in found.answers for entry in answer.entries}
    again = [entry for entry in entries if entry["kind"] == "confirm"]
    assert {entry["trial"] for entry in again} == winners
    assert len(again) == len(winners) > 2, "of several answers, each decision once"
    assert {entry["why"]["objective"] for entry in again} == {"quiz", "prose"}
    assert most_confirmations(one.space) == 4, "two models, two objectives; seed 0 is the setting's own"


class Opposed(World):
    """What is good in one benchmark is bad in the other, on which a base model is known only after ``base_after``."""

    base_after = 0

    def outcome(self, entry: Decision) -> Outcome | None:
        if entry["n"] not in self.done:
            return None
        luck = int(digest(entry["cell"])[:4], 16) / 16**4
        return Outcome("complete", {"quiz": 100 * luck, "prose": 1.5 - luck}, {"quiz": 1.0})

    def decider(self) -> Decider:
        decider = super().decider()
        base = decider.base_of
        decider.base_of = lambda entry: base(entry) if len(self.done) >= self.base_after else None
        return decider


@pytest.mark.parametrize("trials", [5, 6])
def test_what_breaks_a_constraint_against_the_base_is_never_confirmed(trials: int, tmp_path: Path) -> None:
    """Nor where a search ends within its start, before anything else is decided by its base model."""
    limits = {"constraints": {"prose": {"at_least": "base"}}, "confirm": {"top": 1, "seeds": [1]}}
    one = planned(tmp_path / "sweep", TPE | limits | {"trials": trials, "sampler": "random"})
    world = Opposed(tmp_path / "a", one)
    entries = [json.loads(data)["content"] for name, data in world.run().items() if name.startswith("decisions")]
    known = {entry["n"]: world.outcome(entry) for entry in entries if entry["kind"] == "ask"}
    able = {n: found.values["quiz"] for n, found in known.items() if found and found.values["prose"] >= 1.0}
    assert 0 < len(able) < len(known) == trials
    assert [entry["trial"] for entry in entries if entry["kind"] == "confirm"] == [max(able, key=able.__getitem__)]
    decider = world.decider()
    decider.look()
    decider.stale()
    base = entries[0]["model"]
    assert decider._bases == {base: Outcome("complete", {"quiz": 30.0, "prose": 1.0})}, (
        "the log tells what it was given"
    )
    assert sum(f"base {base}" in entry["given"] for entry in entries) == 1


def test_confirming_waits_for_the_base_model(tmp_path: Path) -> None:
    limits = {"constraints": {"prose": {"at_least": "base"}}, "confirm": {"top": 1, "seeds": [1]}}
    world = Opposed(tmp_path / "a", planned(tmp_path / "sweep", TPE | limits | {"trials": 5, "sampler": "random"}))
    world.base_after = 6
    decider = world.decider()
    decider.advance()
    world.done = {0, 1, 2, 3, 4}
    assert [entry["kind"] for entry in decider.advance()] == ["ask"]
    assert decider.asks_no_more and not decider.is_over
    world.base_after = 0
    assert [entry["kind"] for entry in decider.advance()] == ["confirm"]


def test_axis_that_decides_explains_more_than_chance_and_one_that_does_not_no_more() -> None:
    levels = [0, 1] * 10
    deciding = Coordinate("deciding", ("0", "1"), levels, levels)
    other = Coordinate(
        "other", ("0", "1"), [0.1 * (n % 7) for n in range(20)], [0.1 * (n % 7) for n in range(20)], True
    )
    values = [level + 0.01 * (n % 3) for n, level in enumerate(levels)]
    first, second = importances([other, deciding], values)
    assert (first.name, first.is_sure, second.is_sure) == ("deciding", True, False)
    assert first.low > second.share
    assert not importances([deciding], values[:5]), "too few to tell"


def test_weights_keep_their_limits_and_are_the_same_with_kills(tmp_path: Path) -> None:
    one = planned(tmp_path / "sweep", WEIGHTS)
    first = World(tmp_path / "first", one).run()
    entries = [json.loads(data)["content"] for name, data in first.items() if name.startswith("decisions")]
    shares = [one.named(entry) for entry in entries if entry["kind"] == "ask"]
    confirmed = [entry for entry in entries if entry["kind"] == "confirm"]
    assert [entry["with_seed"] for entry in confirmed] == [1, 2, 1, 2], "seed 0 is the setting's own"
    assert len({entry["cell"] for entry in confirmed}) == 4
    assert "confirms decision" in decision_line(confirmed[0], one.named(confirmed[0]))
    assert len(shares) == len({tuple(choice.items()) for choice in shares}) == 9
    assert shares[:3] == [
        {"first": 0.1, "second": 0.9}, {"first": 0.8, "second": 0.2}, {"first": 0.5, "second": 0.5}
    ] or shares[:3] == [
        {"first": 0.8, "second": 0.2}, {"first": 0.1, "second": 0.9}, {"first": 0.5, "second": 0.5}
    ]  # fmt: skip
    assert all(0.05 <= choice["first"] <= 0.8 and sum(choice.values()) == pytest.approx(1) for choice in shares)
    assert World(tmp_path / "again", one, 4, 1, deaths=0.2).run() == first


def test_nothing_is_decided_while_a_file_of_the_space_is_missing(tmp_path: Path) -> None:
    """Its id would be that of another search once the file is there."""
    datasets = {"first": {"path": "none.jsonl", "format": "alpaca"}}
    changes: dict[str, Any] = {"datasets": datasets, "mixtures": {"one": {"each": "first", "samples": 10}}}
    plan = make_whole_plan(load_sweep(sweep_file(tmp_path, search=[TPE], blocks=[], **changes)))
    assert [problem.place.partition(": ")[2] for problem in plan.missing] == ["datasets.first.path"]
    assert with_first_decisions(plan) is plan
    assert not (tmp_path / "ledger").exists()


def test_budget_ends_a_search_once_it_is_spent(tmp_path: Path) -> None:
    one = planned(tmp_path / "sweep", TPE | {"sampler": "random"})
    world = World(tmp_path / "a", one)
    decider = world.decider()
    decider.budget_h, decider.spent_h = 6.0, lambda entries: float(len(entries))
    world._run(decider)
    decider.release()
    assert len(decider.asks) == 6
    world.run()
    assert len([name for name in world.files() if name.startswith("decisions")]) >= 12, "without it, it goes on"


@pytest.mark.parametrize(
    "before",
    [
        {"status": Status.FAILED, "error": "a node was lost"},
        {"status": Status.PARTIAL, "missing": {"quiz-0shot": "no data"}},
    ],
)
def test_budget_counts_what_a_further_try_took(before: dict[str, Any], tmp_path: Path) -> None:
    """In the process that saw the first one, too."""
    search = TPE | {"sampler": "random", "trials": 50, "at_once": 2, "start": {"qmc": 2}, "budget": {"gpu_hours": 4}}
    (tmp_path / "sweep").mkdir()
    sweep = load_sweep(sweep_file(tmp_path / "sweep", search=[search], blocks=[]))
    plan = with_first_decisions(make_whole_plan(sweep))
    ledger = plan.open_ledger()

    def write(**changes: Any) -> None:
        for run in plan.runs:
            for cell in run.cells:
                ledger.write_record(made_record(cell, run.trajectory.id, **changes))

    decider = Decider.of(plan_searches(sweep)[0], ledger)
    assert decider.lead()
    write(**before, training={"seconds": 900.0}, scores={})
    assert len(decider.advance()) <= 2 and decider.spent_h(decider.trained) == 0.5
    write(training={"seconds": 7200.0})
    assert decider.spent_h(decider.trained) == 4.0 and decider.asks_no_more
    decider.release()


def test_search_begins_with_what_was_best_for_another_model(tmp_path: Path) -> None:
    block = {"name": "A", "model": "large", "mixture": "first", "setting": "lora", "schedule": "constant"}
    block |= {"horizon": 1, "snapshots": [1], "override": {"lr": [2e-5, 1e-4, 7e-4], "lora.rank": [4, 8]}}
    search = TPE | {"start": {"portfolio": 2, "qmc": 3}, "space": {"lr": {"log": [1e-5, 1e-3]}, "lora.rank": [4, 8]}}
    plan = make_plan(load_sweep(sweep_file(tmp_path, blocks=[block])))
    ledger = plan.open_ledger()
    trained = [cell for run in plan.runs for cell in run.cells]
    for cell in trained:
        ledger.write_cell(cell.cell.id, cell.cell.content)
        ledger.write_record(made_record(cell, cell.cell.recipe.id if cell.cell.recipe else None))
    one = plan_searches(load_sweep(sweep_file(tmp_path, blocks=[block], search=[search])))[0]
    decider = Decider.of(one, ledger)
    assert decider.lead()
    decider.advance()
    decider.release()
    best = sorted(trained, key=number_of, reverse=True)[:2]
    wanted = [(cell.cell.recipe.setting.lr, cell.cell.recipe.setting.lora.rank) for cell in best if cell.cell.recipe]
    named = [one.named(entry) for entry in decider.entries]
    assert [(choice["lr"], choice["lora.rank"]) for choice in named[:2]] == wanted
    assert [entry["sampler"] for entry in decider.entries] == ["portfolio", "portfolio", "start", "start"]


@pytest.mark.parametrize("is_written", [False, True])
def test_kill_at_the_write_of_a_decision_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    one = planned(tmp_path / "sweep", TPE | {"sampler": "random"})
    first = World(tmp_path / "first", one).run()
    world, whole, calls = World(tmp_path / "killed", one, 3, 1), Folder.put_if_absent, 0

    def killed(storage: Folder, key: str, data: bytes) -> bool:
        nonlocal calls
        calls += key.startswith("decisions")
        if key.startswith("decisions") and calls % 3 == 0:
            if is_written:
                whole(storage, key, data)
            raise Killed
        return whole(storage, key, data)

    monkeypatch.setattr(Folder, "put_if_absent", killed)
    assert world.run() == first


def test_more_trials_go_on_where_it_was(tmp_path: Path) -> None:
    short, long = (planned(tmp_path / str(trials), TPE | {"trials": trials}) for trials in (9, 14))
    assert short.id == long.id
    World(tmp_path / "a", short).run()
    extended = World(tmp_path / "a", long, 3, 2)
    extended.done = set(range(9))
    assert extended.run() == World(tmp_path / "b", long).run()


def test_order_of_arrival_decides_with_what_is_there_and_keeps_to_its_log(tmp_path: Path) -> None:
    one = planned(tmp_path / "sweep", TPE | {"order": "arrival", "sampler": "random"})
    world = World(tmp_path / "a", one, 4, 3)
    files = world.run()
    given = [list(json.loads(data)["content"]["given"]) for name, data in files.items() if name.startswith("dec")]
    assert [int(key) for keys in given for key in keys] != sorted(int(key) for keys in given for key in keys)
    assert World(tmp_path / "a", one, 1, 9).run() == files


# What decides the sequence is in the id, and nothing else.

GOLDEN = "8ad552f87c73948f"


def test_id_is_golden(tmp_path: Path) -> None:
    assert planned(tmp_path, TPE).id == GOLDEN


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 99}, {"budget": {}}, {"name": "other"}, {"retries": 5},
        {"schedule": "constant", "horizon": 1, "snapshots": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_decide_leaves_the_id(tmp_path: Path, change: dict[str, Any]) -> None:
    assert planned(tmp_path, TPE | change).id == GOLDEN


def test_names_and_replaced_values_leave_the_id(tmp_path: Path) -> None:
    hub = {"hub": "someone/thing", "revision": "a" * 40}
    changes: dict[str, Any] = {
        "models": {"renamed": hub},
        "settings": {"other": {"method": "lora", "lr": 5e-5, "batch": 64, "lora": {"rank": 2}}},
    }
    assert planned(tmp_path, TPE | {"model": "renamed", "setting": "other"}, **changes).id == GOLDEN


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"at_once": 5}, {"sampler": "random"}, {"order": "arrival"}, {"start": {"qmc": 6}},
        {"objective": {"maximize": "prose"}}, {"objective": {"minimize": "quiz"}}, {"model": "large"},
        {"mixture": "second"}, {"schedule": "cosine"}, {"horizon": 2}, {"constraints": {"prose": {"at_most": 2}}},
        {"space": TPE["space"] | {"batch": [16, 64]}}, {"objective": {"maximize": {"mean": "quiz"}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_moves_the_id(tmp_path: Path, change: dict[str, Any]) -> None:
    assert planned(tmp_path, TPE | change).id != GOLDEN


# The log.


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Planned, Folder, Path]:
    one = planned(tmp_path / "sweep", TPE | {"sampler": "random"})
    world = World(tmp_path, one)
    world.run()
    assert isinstance(world.root, Folder)
    return one, world.root, world.root.root / "searches" / one.id / "decisions"


def test_edited_decision_is_refused_with_its_number(finished: tuple[Planned, Folder, Path]) -> None:
    one, root, decisions = finished
    edited = decisions / "000003.json"
    edited.write_bytes(edited.read_bytes().replace(b'"try":0', b'"try":1'))
    with pytest.raises(Corrupt, match=r"000003\.json: .*: decision 3 was edited; put it back"):
        DecisionLog(root, one.id).read()


def test_decision_of_another_search_is_refused_with_its_number(finished: tuple[Planned, Folder, Path]) -> None:
    one, root, decisions = finished
    (decisions / "000003.json").write_bytes((decisions / "000002.json").read_bytes())
    with pytest.raises(Corrupt, match="decision 3 does not follow from decision 2"):
        DecisionLog(root, one.id).read()


def test_missing_decision_is_refused_with_its_number(finished: tuple[Planned, Folder, Path]) -> None:
    one, root, decisions = finished
    (decisions / "000003.json").unlink()
    with pytest.raises(Corrupt, match="decision 3 is missing, but later ones are there"):
        DecisionLog(root, one.id).read()


def test_removed_end_of_a_log_is_decided_again_equal(finished: tuple[Planned, Folder, Path], tmp_path: Path) -> None:
    one, root, decisions = finished
    before = {path.name: path.read_bytes() for path in decisions.iterdir()}
    for name in sorted(before)[-2:]:
        (decisions / name).unlink()
    again = World(tmp_path, one)
    again.done = set(range(len(before)))
    again.run()
    assert {path.name: path.read_bytes() for path in decisions.iterdir()} == before
    assert root == again.root


def test_only_one_process_decides(finished: tuple[Planned, Folder, Path]) -> None:
    one, root, _ = finished
    lease = DecisionLog(root, one.id).lease("first", LeaseWatch())
    assert lease is not None
    assert DecisionLog(root, one.id).lease("second", LeaseWatch()) is None
    lease.release()


def test_thousand_decisions_are_read_at_once(tmp_path: Path) -> None:
    root, content = Folder(tmp_path), {"what": "it is"}
    log = DecisionLog(root, "0" * 16)
    log.begin(content)
    lease = log.lease("me", LeaseWatch())
    assert lease is not None
    outcome = Outcome("complete", {"quiz": 1.0}, {"quiz": 0.1}).as_json()
    with lease:
        for number in range(1000):
            log.write({"kind": "ask", "group": 0, "choice": {"lr": 1e-4}, "given": {str(number - 8): outcome}}, lease)
    began = time.process_time()
    again = DecisionLog(root, "0" * 16).read()
    assert again == log.entries
    assert time.process_time() - began < 1


# Optuna as a function.

AXES = (
    Axis("batch", "ordered", values=(16, 32, 64)),
    Axis("lr", "log", ends=(1e-5, 1e-3)),
    Axis("template", "names", values=("paper", "plain"), contents=("paper", "plain")),
)


def lived(sampler: str, asks: int, values: Sequence[float], pending: int, seed: int) -> list[dict[str, Any]]:
    """Return what a study that lives proposes, its sampler seeded anew before each ask, with some always pending."""
    study, distributions = rebuilt(AXES, sampler, [], 1, seed)
    trials, choices = [], []
    for number in range(asks):
        if number >= pending:
            study.tell(trials[number - pending], values[number - pending])
        study.sampler = rebuilt(AXES, sampler, [], 1, seed + number)[0].sampler
        trials.append(study.ask(distributions))
        choices.append(dict(trials[-1].params))
    return choices


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_rebuilt_study_proposes_what_one_that_lived_does(sampler: Any) -> None:
    values = [float(number * 7 % 5) for number in range(12)]
    choices = lived(sampler, 9, values, 3, seed=11)
    for number in range(9):
        told = [Tried(choice, (values[index],)) for index, choice in enumerate(choices[: max(0, number - 2)])]
        waiting = [Tried(choice) for choice in choices[len(told) : number]]
        study, distributions = rebuilt(AXES, sampler, [*told, *waiting], 1, 11 + number)
        assert dict(study.ask(distributions).params) == choices[number]


def test_diverged_region_is_left_by_both_samplers() -> None:
    """Told as failed, Optuna's samplers go on into it: they take no note of failures."""
    axes = (Axis("lr", "log", ends=(1e-6, 1e-3)),)

    def value(choice: Mapping[str, float]) -> float | None:
        return None if choice["lr"] > 1e-4 else choice["lr"] * 1e4

    for sampler in ("tpe", "gp"):
        tried = [Tried({"lr": lr}) for lr in (2e-6, 1e-5, 4e-5, 9e-5, 2e-4, 5e-4)]
        for number in range(10):
            known = [value(one.choice) for one in tried]
            worst = min(one for one in known if one is not None) - 0.3
            told = [replace(one, values=(worst if v is None else v,)) for one, v in zip(tried, known, strict=True)]
            tried.append(Tried(propose(axes, sampler, told, 1, number)))
        assert sum(one.choice["lr"] > 1e-4 for one in tried[6:]) <= 3


def test_ranges_are_rounded_and_lists_keep_their_order(tmp_path: Path) -> None:
    space = planned(tmp_path, TPE).space
    choice = {axis.name: axis.rounded(axis.ends[0] * 1.23456 if axis.is_range else 1) for axis in space.axes}
    assert space.named(choice) == {"batch": 32, "lora.alpha": 16, "lora.rank": 8, "lr": 1.23e-05}
    assert space.size is None
    assert planned(tmp_path, GRID).space.size == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"maximize": "quizz"}}, "gives it, got 'quizz' (did you mean 'quiz'?)"),
        ({"stop": {"regret": "5%"}}, "is judged over cells only (over): trials says when this search ends"),
        (
            {"rungs": {"at": [1, 2]}, "horizon": 2, "objective": {"maximize": ["quiz", "prose"]}},
            "promote by one number: give the objective one benchmark, or a mean of several",
        ),
        ({"constraints": {"perplexity": {"at_most": "base + 1"}}}, "must be a number: base models have no measures"),
        ({"confirm": {"seeds": [0]}}, "confirm.seeds: must have another seed than the setting's own"),
    ],
)  # fmt: skip
def test_plan_refuses_what_it_cannot_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(tmp_path, TPE | change)
    assert message in str(caught.value)


def test_search_over_fewer_than_two_cells_is_refused(tmp_path: Path) -> None:
    block = {"name": "A", "model": "small", "mixture": "first", "setting": "lora", "schedule": "constant",
             "horizon": 1, "snapshots": 1, "exclude": [{"model": "small"}]}  # fmt: skip
    with pytest.raises(InvalidInput, match=r"search\[0\].over: must leave cells to choose from, but there are 0"):
        planned(tmp_path, OVER, blocks=[block])


def test_search_that_is_there_twice_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    again = {"name": "t", "from": "s", "trials": 20}
    with pytest.raises(InvalidInput, match=r"search\[1\]: is the same search as s"):
        plan_searches(load_sweep(sweep_file(tmp_path, search=[TPE, again], blocks=[])))


def test_plan_refuses_adapter_groups_beside_a_search(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, search=[TPE], blocks=[], resources=[{"lora_at_once": 4}]))
    with pytest.raises(InvalidInput, match=r"resources\[0\].lora_at_once: must be 1 beside a search.*got 4"):
        plan_searches(sweep)


def test_plan_refuses_a_budget_of_the_file_beside_a_search(tmp_path: Path) -> None:
    budget = {"gpu_hours": 5, "price_per_gpu_hour": 2}
    sweep = load_sweep(sweep_file(tmp_path, search=[TPE], blocks=[], budget=budget))
    rule = r"budget.gpu_hours: keeps a run from deciding.*limit a search by its own budget.gpu_hours.*got 5"
    with pytest.raises(InvalidInput, match=rule):
        plan_searches(sweep)


def test_constraint_against_the_base_waits_for_its_scores_and_for_nothing_else(tmp_path: Path) -> None:
    """A base model has no perplexity of its own answers, to which a trained one may be held."""
    limits = {"quiz": {"at_least": "base - 50"}, "perplexity": {"at_most": 9}}
    search = TPE | {"constraints": limits, "sampler": "random", "trials": 4, "at_once": 2, "start": {"qmc": 2}}
    (tmp_path / "sweep").mkdir()
    sweep = load_sweep(sweep_file(tmp_path / "sweep", search=[search], blocks=[]))
    plan = with_first_decisions(make_whole_plan(sweep))
    ledger = plan.open_ledger()

    def write(cells: Sequence[CellPlan], trajectory: str | None) -> None:
        for cell in cells:
            ledger.write_record(made_record(cell, trajectory))

    decider = Decider.of(plan_searches(sweep)[0], ledger)
    assert decider.lead()
    for run in plan.runs:
        write(run.cells, run.trajectory.id)
    assert decider.advance() == [], "it waits for the base model"
    write(plan.base, None)
    assert [entry["n"] for entry in decider.advance()] == [2, 3]
    assert [key.partition(" ")[0] for key in decider.entries[2]["given"]] == ["0", "base"]
    decider.release()


def test_base_model_that_was_given_up_counts_once_a_later_run_scored_it(tmp_path: Path) -> None:
    search = TPE | {"constraints": {"quiz": {"at_least": "base - 50"}}, "sampler": "random", "trials": 8}
    (tmp_path / "sweep").mkdir()
    sweep = load_sweep(sweep_file(tmp_path / "sweep", search=[search | {"at_once": 2, "start": {"qmc": 2}}], blocks=[]))
    plan = with_first_decisions(make_whole_plan(sweep))
    ledger, (base,) = plan.open_ledger(), plan.base
    decider = Decider.of(plan_searches(sweep)[0], ledger)
    assert decider.lead()

    def train() -> None:
        for run in make_whole_plan(sweep).runs:
            for cell in run.cells:
                ledger.write_record(made_record(cell, run.trajectory.id))

    train()
    scored = made_record(base, None)
    ledger.write_record(scored.model_copy(update={"status": Status.FAILED, "error": "killed", "scores": {}}))
    decider.advance()
    ledger.write_record(scored.model_copy(update={"status": Status.FAILED, "error": f"{INVALIDATED}x", "scores": {}}))
    train()
    decider.advance()
    ledger.write_record(scored)
    train()
    decider.advance()
    told = [
        [one["kind"] for key, one in entry["given"].items() if key.startswith("base ")] for entry in decider.entries
    ]
    assert told == [[], [], ["given_up"], [], [], [], ["complete"], []]
    decider.release()


def test_sampler_is_told_of_lower_rungs_what_is_pending_or_had_no_room(tmp_path: Path) -> None:
    one = planned(tmp_path, RUNGS | {"sampler": "gp", "space": {"lr": {"log": [1e-6, 1e-2]}}, "trials": 60})
    axis = one.rules.space.axes[0]
    log: list[dict[str, Any]] = []
    outcomes: dict[int, Outcome] = {}

    def add(kind: str, value: float, rung: int, **more: Any) -> None:
        entry = {"n": len(log), "kind": kind, "group": 0, "choice": {"lr": value}, "model": "m", "rung": rung}
        log.append(entry | {"cell": f"{len(log)}"} | more)

    for index in range(9):
        outcomes[len(log)] = Outcome("complete", {"quiz": 10.0 - abs(index - 3), "prose": 1.0})
        add("ask", axis.at(index / 9), 0)
    for index in range(9):
        outcomes[len(log)] = Outcome("complete", {"quiz": 12.0 - abs(index - 3), "prose": 1.0})
        add("promote", axis.at(index / 9), 1, trial=index)
    for index in range(9):  # nothing is promoted further
        outcomes[len(log)] = Outcome("diverged")
        add("promote", axis.at(index / 9), 2, trial=index)
    proposed = []
    for _ in range(4):  # and none has an outcome yet
        found = next_ask(one.rules, log, Given(outcomes, {}))
        assert found is not None and (found["kind"], found["sampler"], found["try"]) == ("ask", "gp", 0)
        proposed.append(found["choice"]["lr"])
        add("ask", proposed[-1], 0)
    assert len(set(proposed)) == 4, "no two proposals of what is pending"


def asked_of_all(one: Planned, outcome_of: Callable[[int], Outcome]) -> tuple[list[dict[str, Any]], Given]:
    """Return the decisions for all cells of a space, and what came of them."""
    asks = [
        {"n": n, "kind": "ask", "group": 0, "choice": choice, "cell": f"{n}", "model": "m"}
        for n, choice in enumerate(one.space.choices())
    ]
    return asks, Given({n: outcome_of(n) for n in range(len(asks))}, {})


def test_search_over_cells_does_not_go_on_for_one_that_was_given_up(tmp_path: Path) -> None:
    search = OVER | {"objective": {"maximize": "quiz"}, "at_once": 2}
    one = plan_searches(load_sweep(sweep_file(tmp_path, search=[search])))[0]
    asks, given = asked_of_all(one, lambda n: Outcome("complete", {"quiz": 40.0 + 20 * (n % 2)}, {"quiz": 1.0}))
    last = len(asks) - 1
    given = Given({**given.outcomes, last: Outcome("given_up")}, {})
    verdict = judge_stop(one.rules, asks, given)
    assert verdict is not None and (verdict["kind"], verdict["why"]["probability"]) == ("stop", 1.0)


def test_search_over_cells_bears_a_perplexity_that_is_all_but_infinite(tmp_path: Path) -> None:
    search = OVER | {"objective": {"minimize": "prose"}, "at_once": 2}
    one = plan_searches(load_sweep(sweep_file(tmp_path, search=[search])))[0]
    asks, given = asked_of_all(one, lambda n: Outcome("complete", {"prose": 1e200 if n == 1 else 8.0 + n}))
    found = next_cell(one.rules, asks[:-1], Given({n: given.outcomes[n] for n in range(len(asks) - 1)}, {}))
    assert found is not None and found["choice"] == asks[-1]["choice"]
    assert math.isfinite(found["why"]["gain"])
