"""A search on the offline world: its decisions become trainings, and whoever goes on with it decides the same."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from rich.console import Console
from small_sweep import small_sweep

from massive_sft.cli.gc import collect
from massive_sft.cli.search_view import find_search, search_json, searches_json, searches_view, trials_left
from massive_sft.core.errors import InvalidInput
from massive_sft.cost.budget import fit_to_budget
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.record import AWAITED, INVALIDATED, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import find_changes, save_last_plan
from massive_sft.planning.outcome import AsPlanAsks
from massive_sft.planning.plan import CellPlan, Plan
from massive_sft.report.write import write_report
from massive_sft.running.events import CellRecorded, Decided, RunEvent
from massive_sft.running.failures import error_text
from massive_sft.running.inline import run_inline
from massive_sft.running.recorder import RecordWriter
from massive_sft.running.search_work import SearchWork, with_first_decisions
from massive_sft.running.trial import make_record_writer
from massive_sft.scheduling.trials import LaneFailed
from massive_sft.search.cells import CellSpace
from massive_sft.search.decider import Decider
from massive_sft.search.outcomes import taken_s
from massive_sft.search.plan import make_whole_plan, plan_searches
from massive_sft.search.replay import replay
from massive_sft.search.rules import trained_of
from massive_sft.search.standing import Standing, find_earlier, find_standings
from massive_sft.search.tags import search_tags
from massive_sft.study.results import results_of
from massive_sft.sweep.load import load_sweep
from massive_sft.tracking.source import CellSource
from massive_sft.training.micro_batch import OutOfMemory

RUNGS: dict[str, Any] = {
    "name": "s", "model": "llama", "mixture": "one", "setting": "lora", "objective": {"minimize": "perplexity"},
    "space": {"lr": {"log": [1e-4, 1e-2]}, "lora.rank": [2, 4]}, "sampler": "random", "trials": 3, "at_once": 2,
    "horizon": 2, "rungs": {"at": [1, 2], "keep": 0.5}, "start": {"qmc": 2},
}  # fmt: skip


def planned(folder: Path) -> Plan:
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"], "blocks": []}
    return with_first_decisions(make_whole_plan(load_sweep(small_sweep(folder, search=[RUNGS], **nothing))))


def run(plan: Plan, most: int = 100, retrain: bool = False) -> list[RunEvent]:
    """Run a search, or until so many cells have their records."""
    happened: list[RunEvent] = []
    work = SearchWork(plan, plan.open_ledger(), happened.append, lambda _: None)

    def stop() -> bool:
        return sum(isinstance(event, CellRecorded) for event in happened) >= most

    try:
        run_inline(plan, happened.append, retrain, stop, work=work)
    finally:
        work.close()
    return happened


def log_of(plan: Plan) -> dict[str, bytes]:
    folder = plan.root / "searches"
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("decisions/*.json"))}


def standing(plan: Plan) -> Standing:
    return find_standings(plan.sweep, Ledger(plan.storage))[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[RunEvent]]:
    plan = planned(tmp_path_factory.mktemp("undisturbed"))
    assert len(plan.runs) == 2, "what can be decided before anything is trained is part of the plan"
    return plan, run(plan)


def test_search_runs_to_its_end_and_promotes(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    plan, happened = undisturbed
    found = standing(plan)
    assert found.is_over, "nothing can be promoted any more"
    assert [entry["kind"] for entry in found.entries].count("ask") == 3
    promoted = [entry for entry in found.entries if entry["kind"] == "promote"]
    assert len(promoted) == 1
    assert found.counts == {"complete": 4}
    decided = [entry["n"] for event in happened if isinstance(event, Decided) for entry in event.entries]
    assert decided == list(range(2, len(found.entries)))
    whole = make_whole_plan(plan.sweep)
    assert all(cell.is_done for cell in whole.cells)
    parked = {run.trajectory.id for run in whole.runs if run.keeps_state}
    kept = {path.parent.name for path in (plan.root / "trajectories").glob("*/kept")}
    assert parked <= kept, "what may be promoted keeps what it goes on from"
    assert len(parked) == 2


def test_gc_leaves_the_state_that_a_promotion_is_to_go_on_from(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    plan = make_whole_plan(undisturbed[0].sweep)
    parked = next(run for run in plan.runs if run.keeps_state)
    ended = replace(parked, keeps_state=False)
    waiting = tuple(replace(cell, recorded=Status.WAITING, unmet=cell.requirements) for cell in parked.cells)
    removed = [
        [item.kind for item in collect(replace(plan, runs=(one,)), plan.open_ledger()).waste]
        for one in (parked, replace(ended, cells=waiting), ended)
    ]
    assert removed == [[], [], ["state"]]


def test_cells_that_a_search_decided_are_no_change_of_the_sweep(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    plan, ledger = make_whole_plan(undisturbed[0].sweep), undisturbed[0].open_ledger()
    first = replace(plan, runs=plan.runs[:1])
    save_last_plan(first, ledger)
    assert find_changes(plan) == []
    save_last_plan(plan, ledger)
    assert len(find_changes(first)) == 2


def test_stopped_search_goes_on_to_the_same_decisions(undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path) -> None:
    plan = planned(tmp_path)
    run(plan, most=1)
    assert log_of(plan) != log_of(undisturbed[0])
    run(with_first_decisions(make_whole_plan(plan.sweep)))
    assert log_of(plan) == log_of(undisturbed[0])


def test_run_that_does_not_decide_sees_what_another_decides(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    """It says so, and is over once everything that was decided is done."""
    plan = make_whole_plan(undisturbed[0].sweep)
    deciding = SearchWork(plan, plan.open_ledger(), lambda _: None, print)
    assert deciding.next() is None
    said: list[str] = []
    other = SearchWork(plan, plan.open_ledger(), lambda _: None, said.append)
    assert other.next() is None
    assert said == ["search s: another run decides; this one helps with what it decided"]
    deciding.close()
    other.close()


def test_changed_space_is_another_search_which_is_said(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    plan = undisturbed[0]
    before = plan_searches(plan.sweep)[0]
    changed = before.search.model_copy(update={"seed": 1})
    file = plan.sweep.file.model_copy(update={"search": (changed,)})
    other = plan_searches(replace(plan.sweep, file=file))[0]
    assert other.id != before.id
    assert find_earlier(other, Ledger(plan.storage)) == [before.id]
    assert find_earlier(before, Ledger(plan.storage)) == []


def test_report_shows_each_decision_and_the_best_so_far(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    plan = make_whole_plan(undisturbed[0].sweep)
    page = write_report(plan, results_of(plan), tmp_path).read_text()
    found = standing(plan)
    assert f"decisions of search s ({found.planned.id})" in page
    assert "promoted to rung 2: place 1 of" in page
    assert all(entry["cell"] in page for entry in found.trained)
    assert "regret in perplexity" in page
    assert "s: how much each axis matters is not told from fewer than 8 complete trials." in page
    assert "what search s found" in page
    assert "s: its ranges hold more values than were tried: trials: 3 is used up." in page
    assert "s: 2 trials ended at epoch 1: not among the better 50% there; 2 of them are parked, 0 dropped." in page


def test_decisions_tell_programs_the_values_that_people_see(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    found = standing(make_whole_plan(undisturbed[0].sweep))
    (ended,) = searches_json(undisturbed[0])
    assert (ended["decided"], ended["left"], ended["cost"]) == (3, 0, None)
    for entry, told in zip(found.entries, json.loads(json.dumps(search_json(found)))["decisions"], strict=True):
        assert told["values"] == found.planned.named(entry) and told.items() >= dict(entry).items()


def test_what_a_search_has_left_is_priced_though_the_ledger_has_the_cells(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    """It is the price of new trials, the longest of the space."""
    entry, root = standing(undisturbed[0]).entries[-1], undisturbed[0].root
    values = standing(undisturbed[0]).planned.named(entry)
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 2}
    block |= {"snapshots": [1, 2], "override": {name: [value] for name, value in values.items()}}
    search = {"name": "grid", "over": ["A"], "objective": {"minimize": "perplexity"}, "trials": 3}
    search |= {"budget": {"gpu_hours": 1e-9}}
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"], "storage": {"root": str(root)}}
    plan = make_whole_plan(load_sweep(small_sweep(tmp_path, blocks=[block], search=[search], **nothing)))
    (grid,) = find_standings(plan.sweep, Ledger(plan.storage))
    shown = StringIO()
    Console(file=shown, width=200).print(searches_view(plan, with_cost=True))
    assert "space: 2 cells of A; the ledger has 2 of them" in shown.getvalue()
    assert "at most 2 more trials: training and scoring" in shown.getvalue()
    assert "scoring 0 s" not in shown.getvalue()
    assert "its space has no more than 2 cells, so it ends before trials: 3" in shown.getvalue()
    with pytest.raises(InvalidInput, match=r"or the name of a search, got 'gird' \(did you mean 'grid'"):
        find_search("gird", plan.sweep.path, None)
    assert trials_left(plan) == ["at most 2 more trials of search grid, a training each"]
    (told,) = json.loads(json.dumps(searches_json(plan)))
    assert (told["search"], told["trials"], told["decided"], told["left"]) == (
        "grid",
        2,
        0,
        2,
    )  # all that its space has
    assert told["cost"]["value"] > 0
    assert isinstance(grid.planned.space, CellSpace)
    assert [grid.planned.space.cell(choice).epoch for choice in grid.planned.space.longest()] == [2]


def test_budget_takes_what_was_decided_in_its_order_after_the_blocks(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 1}
    root = str(undisturbed[0].root)
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"], "storage": {"root": root}}
    path = small_sweep(tmp_path, search=[RUNGS], blocks=[block | {"snapshots": 1}], **nothing)
    plan = make_whole_plan(load_sweep(path))
    decided = [run for run in plan.runs if run.trajectory.cells[0].blocks == ("s",)]
    found = standing(plan)
    trials = list(dict.fromkeys(found.planned.trajectory(entry) for entry in trained_of(found.entries)))
    assert [run.trajectory.id for run in decided] == trials and len(trials) == 3
    whole = fit_to_budget(plan, 1e6)
    assert (whole.plan.runs, whole.left_out) == (plan.runs, ())
    most = fit_to_budget(plan, whole.taken.value * 0.999)
    assert most.plan.runs == tuple(run for run in plan.runs if run.trajectory.id != trials[-1])
    assert most.left_out == ("llama × facts (search s): 1 run",)


def test_tracker_is_told_by_which_decision_a_cell_was_asked_for(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    plan = make_whole_plan(undisturbed[0].sweep)
    names = {cell.cell.id: cell.cell.coordinates for cell in plan.cells}
    as_asked = AsPlanAsks(plan, search_tags(plan.sweep, plan.storage))
    source = CellSource(Ledger(plan.storage), names, as_asked)
    shown = {cell: source.read(cell)[1].tags for cell in names}
    for entry in standing(plan).trained:
        tags = {"massive_sft.search": "s", "massive_sft.decision": str(entry["n"])}
        assert tags.items() <= shown[entry["cell"]].items()
        assert shown[entry["cell"]]["massive_sft.rung"] == str(entry["rung"] + 1)


def copied(plan: Plan, folder: Path) -> Ledger:
    """Return a copy of a plan's ledger, to be changed."""
    return Ledger.open(Path(shutil.copytree(plan.root, folder / "copy")), create=False)


def test_log_is_decided_again_equal_and_the_first_decision_that_differs_is_named(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    planned = plan_searches(undisturbed[0].sweep)[0]
    ledger = copied(undisturbed[0], tmp_path)
    found = replay(planned, ledger)
    assert (found.equal, found.believed, found.differs, found.stale) == (4, 0, None, ())
    entries = planned.log(ledger.storage).read()
    shutil.rmtree(tmp_path / "copy" / "searches")
    forged = planned.log(ledger.storage)
    forged.begin(planned.begin(ledger))
    lease = forged.lease("a test", LeaseWatch())
    assert lease is not None
    for entry in entries:  # a chain that is whole, of decisions that nobody would make
        forged.write(entry | ({"seed": 1} if entry["n"] == 1 else {}), lease)
    lease.release()
    found = replay(planned, ledger)
    assert found.equal == 1
    assert (found.differs or "").startswith("decision 1 has seed 1, decided now ")


def test_nothing_is_decided_on_an_outcome_that_was_invalidated(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    planned = plan_searches(undisturbed[0].sweep)[0]
    ledger = copied(undisturbed[0], tmp_path)
    more = replace(planned, search=planned.search.model_copy(update={"trials": 4}))
    more = replace(more, rules=replace(more.rules, space=replace(planned.space, search=more.search)))
    cell = planned.log(ledger.storage).read()[0]["cell"]
    record = ledger.read_record(cell)
    assert record is not None
    ledger.write_record(record.model_copy(update={"status": Status.FAILED, "error": "invalidated", "measures": {}}))
    decider = Decider.of(more, ledger)
    assert decider.lead()
    assert decider.stale() == [0]
    assert (decider.advance(), decider.is_over, [entry["n"] for entry in decider.left()]) == ([], False, [0])
    ledger.write_record(record)  # made again, and the same
    assert decider.advance(), "it goes on"
    decider.release()


def trial_of_a_search(folder: Path) -> tuple[Plan, Decider, RecordWriter, CellPlan]:
    """Return a search with its first decisions, what reads and writes its records, and the cell of the first."""
    plan = planned(folder)
    decider = Decider.of(plan_searches(plan.sweep)[0], plan.open_ledger())
    decider.look()
    cells = {cell.cell.id: cell for run in plan.runs for cell in run.cells}
    return plan, decider, make_record_writer(plan), cells[decider.entries[0]["cell"]]


def test_what_failed_before_a_trial_was_decided_is_no_try_of_it(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    plan, _, writer, cell = trial_of_a_search(tmp_path)
    for attempt in (1, 2, 3):
        writer.failed(cell, attempt, "OutOfMemory: out of memory before the first step")
    shutil.rmtree(plan.root / "searches")
    plan = with_first_decisions(make_whole_plan(plan.sweep))
    assert [entry.get("failed_before", 0) for entry in standing(plan).entries] == [3, 0]
    run(plan)
    found = standing(plan)
    assert found.outcomes == standing(undisturbed[0]).outcomes, "it is decided as if nothing had failed"
    again = replay(found.planned, Ledger(plan.storage))
    assert (again.equal, again.differs) == (4, None)


def test_trial_is_given_up_after_its_own_failures_alone(tmp_path: Path) -> None:
    plan, decider, writer, cell = trial_of_a_search(tmp_path)
    ledger, first = plan.open_ledger(), decider.entries[0]
    assert writer.failed(cell, 1, "OSError: Input/output error") is not None
    record = ledger.read_record(cell.cell.id)
    assert record is not None
    partial = record.model_copy(update={"status": Status.PARTIAL, "error": None})
    known = []
    for update in (
        {"status": Status.FAILED, "error": f"{INVALIDATED}of a run that went out of memory"},
        {"missing": {"perplexity": AWAITED}},
        {"missing": {"quiz": "a benchmark of another sweep"}},
        {"missing": {"perplexity": "failed"}},
        {"missing": {"perplexity": "failed"}},
        {"status": Status.FAILED, "error": "OutOfMemory: out of memory at step 1"},
    ):
        ledger.write_record(partial.model_copy(update=update))
        outcome = decider.outcome_of(first)
        known.append(outcome and outcome.kind)
    assert plan.sweep.file.search[0].retries == 2
    assert known == [None, None, None, None, "given_up", "infeasible"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (error_text(OutOfMemory("no room at step 1")), "infeasible"),
        (error_text(LaneFailed(error_text(OutOfMemory("no room at step 1")))), "infeasible"),
        (error_text(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")), "infeasible"),
        ("3 scorers died while they had it (out of memory, or a crash in native code?)", None),
        (error_text(RuntimeError("a process of the tokenizer went out of memory?")), None),
    ],
)
def test_trial_is_infeasible_only_where_its_training_had_no_room(
    error: str, outcome: str | None, undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    ledger = copied(undisturbed[0], tmp_path)
    decider = Decider.of(plan_searches(undisturbed[0].sweep)[0], ledger)
    decider.look()
    record = ledger.read_record(decider.entries[0]["cell"])
    assert record is not None
    ledger.write_record(record.model_copy(update={"status": Status.FAILED, "error": error, "measures": {}}))
    found = decider.outcome_of(decider.entries[0])
    assert (found and found.kind) == outcome


def test_what_the_ledger_has_costs_a_search_nothing(undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path) -> None:
    entry, ledger = standing(undisturbed[0]).entries[-1], copied(undisturbed[0], tmp_path)
    values = standing(undisturbed[0]).planned.named(entry)
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant", "horizon": 2}
    block |= {"snapshots": [1, 2], "override": {name: [value] for name, value in values.items()}}
    search = {"name": "grid", "over": ["A"], "objective": {"minimize": "perplexity"}, "at_once": 1}
    search |= {"budget": {"gpu_hours": 1e-9}}
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"]}
    nothing |= {"storage": {"root": str(ledger.root)}}
    sweep = load_sweep(small_sweep(tmp_path, blocks=[block], search=[search], **nothing))
    plan = with_first_decisions(make_whole_plan(sweep))
    assert [entry.get("was_there") for entry in standing(plan).asks] == [True, True]
    decider = Decider.of(standing(plan).planned, ledger)
    decider.look()
    asks = decider.asks
    assert decider.spent_h(asks) == 0
    assert decider.spent_h([{key: one[key] for key in one if key != "was_there"} for one in asks]) > 0


def test_outcome_stands_until_it_is_invalidated_whatever_is_measured_since(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    """As where another sweep asks all questions of a cell that a search knows by an early answer."""
    ledger = copied(undisturbed[0], tmp_path)
    decider = Decider.of(plan_searches(undisturbed[0].sweep)[0], ledger)
    decider.look()
    first = decider.entries[0]
    record, known = ledger.read_record(first["cell"]), decider.outcome_of(first)
    assert record is not None and known is not None
    measures = {"perplexity": {"schema": 3, "response": {"perplexity_micro": known.values["perplexity"] + 1}}}
    changed = record.model_copy(update={"measures": measures})
    ledger.write_record(changed)
    assert decider.outcome_of(first) != known
    assert (decider.stale(), decider.outcome(first)) == ([], known)
    ledger.write_record(record.model_copy(update={"status": Status.FAILED, "error": f"{INVALIDATED}x", "measures": {}}))
    ledger.write_record(changed)
    decider = Decider.of(plan_searches(undisturbed[0].sweep)[0], ledger)
    decider.look()
    assert decider.stale() == [0]


def test_search_waits_for_weights_that_were_removed(tmp_path: Path) -> None:
    """Nothing is given up for them, and no trial is tried twice in vain."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant", "horizon": 1}
    block |= {"snapshots": [1], "override": {"lr": [1e-3, 2e-3, 3e-3]}}
    unscored = {"evaluation": {"base": False, "tasks": []}, "measures": ["token_length"], "blocks": [block]}
    run_inline(make_whole_plan(load_sweep(small_sweep(tmp_path, **unscored))), lambda _: None)
    search = {"name": "g", "over": ["A"], "objective": {"maximize": "facts_mc"}, "trials": 3, "at_once": 2}
    tasks = [{"path": str(tmp_path / "world" / "tasks" / "facts_mc.yaml"), "limit": 4}]
    scored = {"evaluation": {"base": False, "protocol": {"dtype": "fp32"}, "tasks": tasks}, "search": [search]}
    sweep = load_sweep(small_sweep(tmp_path, **{**unscored, **scored}))
    plan = with_first_decisions(make_whole_plan(sweep))
    run(plan)
    found = standing(plan)
    assert ([entry["kind"] for entry in found.entries], found.outcomes) == (["ask", "ask"], {})
    ledger = plan.open_ledger()
    assert [len(list(ledger.history(entry["cell"]))) for entry in found.asks] == [2, 2]
    run(with_first_decisions(make_whole_plan(sweep)), retrain=True)
    assert standing(plan).counts == {"complete": 3}


def test_trial_that_was_given_up_counts_once_its_cell_is_complete(
    undisturbed: tuple[Plan, list[RunEvent]], tmp_path: Path
) -> None:
    plan, decider, writer, cell = trial_of_a_search(tmp_path)
    for attempt in (1, 2, 3):
        writer.failed(cell, attempt, "OSError: Input/output error")
    assert decider.lead()
    assert decider.advance()[0]["kind"] == "given_up"
    decider.release()
    assert standing(plan).outcomes[0].kind == "given_up"
    run(make_whole_plan(plan.sweep))  # which tries again whatever failed
    found = standing(plan)
    assert found.outcomes[0] == standing(undisturbed[0]).outcomes[0]
    given = [entry["given"]["0"]["kind"] for entry in found.entries if "0" in entry["given"]]
    assert given == ["complete"], "the sampler is told of it, once"
    assert replay(found.planned, Ledger(plan.storage)).differs is None


def undecided(folder: Path, **changes: Any) -> Plan:
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"], "blocks": []}
    return make_whole_plan(load_sweep(small_sweep(folder, search=[RUNGS | changes], **nothing)))


def test_run_that_may_not_decide_and_has_nothing_to_do_waits(tmp_path: Path) -> None:
    plan = undecided(tmp_path)
    other = Decider.of(plan_searches(plan.sweep)[0], plan.open_ledger())
    assert other.lead()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        other.release()

    assert len(with_first_decisions(plan, say).runs) == 2
    assert said == ["search s: another run decides, or died just now; this one waits for something to do"]


def test_run_that_loses_the_right_to_decide_goes_on_with_what_is_decided(tmp_path: Path) -> None:
    plan = undecided(tmp_path, trials=40, at_once=40)
    lease = plan.open_ledger().storage.at(f"searches/{plan_searches(plan.sweep)[0].id}/lease")

    def take_it() -> None:
        while not log_of(plan):
            time.sleep(0.001)
        process = dict.fromkeys(("host", "boot", "pid_namespace", "started"), "elsewhere") | {"pid": 1}
        content = json.dumps({"name": "another", "token": "t", "ttl": 60.0, "process": process})
        lease.put_if_absent("2", f"{content}\n0".encode())

    taker = Thread(target=take_it)
    taker.start()
    decided = with_first_decisions(plan)
    taker.join()
    assert 0 < len(decided.runs) < 40


def test_search_whose_budget_is_used_up_has_no_trials_left_though_it_confirms(tmp_path: Path) -> None:
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": ["perplexity"], "blocks": []}
    search = {key: value for key, value in RUNGS.items() if key != "rungs"} | {"trials": 20, "horizon": 1}
    search |= {"budget": {"gpu_hours": 1e-9}, "confirm": {"top": 1, "seeds": [1]}}
    plan = with_first_decisions(make_whole_plan(load_sweep(small_sweep(tmp_path, search=[search], **nothing))))
    run(plan, most=1)
    found = standing(plan)
    assert (found.is_over, found.left, found.confirmations_left) == (False, 0, 1)
    assert trials_left(plan) == ["at most 0 more trials and 1 that confirm the best of search s, a training each"]


def test_budget_counts_each_gpu_of_a_scorer(undisturbed: tuple[Plan, list[RunEvent]]) -> None:
    record = next(undisturbed[0].open_ledger().records())
    alone, several = taken_s(record, 0), taken_s(record, 4)
    assert (several[0], several[1]) == (alone[0], 4 * alone[1])
    assert alone[1] > 0
