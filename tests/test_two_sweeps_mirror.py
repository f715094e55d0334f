"""Two sweeps on one root, each in an MLflow experiment of its own: it shows the cells as its own sweep asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from sample_records import plan_of, sweep_file, write_records
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.stop import StopSignal
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.runs import register_run
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan
from massive_sft.planning.selection import parse_where, select_cells
from massive_sft.running.events import CellRecorded, Listen, RunEvent
from massive_sft.running.execute import execute
from massive_sft.tracking.client import silence_loggers
from massive_sft.tracking.mirror import mirror_all
from massive_sft.tracking.view import TAG, view_columns

QUIZ, PROSE, BROKEN = ({"name": name, "shots": 0} for name in ("quiz", "prose", "broken"))
WHY = "UndefinedError: 'quest' is undefined"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without experiments: making one takes over a second."""
    silence_loggers()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def root(tmp_path: Path, empty_store: bytes) -> Path:
    ledger = Ledger.open(tmp_path / "ledger")
    (ledger.root / "mlflow.db").write_bytes(empty_store)
    return ledger.root


def sweep(root: Path, name: str, *tasks: dict[str, Any], setting: str = "full") -> Plan:
    """Plan a sweep of one model, two epochs of one training, and these benchmarks; ``setting`` is only a name."""
    folder = root.parent / name
    folder.mkdir(exist_ok=True)
    block = {"name": "A", "model": "small", "mixture": "one", "setting": setting, "schedule": "constant"}
    settings = {setting: {"method": "full", "lr": 1e-5, "batch": 32}}
    content: dict[str, Any] = {"name": name, "settings": settings, "storage": {"root": str(root)}}
    content |= {"blocks": [{**block, "horizon": 2, "snapshots": [1, 2]}], "evaluation": {"tasks": list(tasks)}}
    return plan_of(sweep_file(folder, **content))


def record(plan: Plan, change: Callable[[Record], Record | None] = lambda record: record) -> Plan:
    """Write records of what a sweep asks, as its run does; return the plan after them."""
    ledger = write_records(plan, change)
    for item in plan.cells:
        ledger.write_cell(item.cell.id, item.cell.content)
    return plan_of(plan.sweep.path)


def broken(record: Record) -> Record:
    scores = {key: item for key, item in record.scores.items() if item.benchmark != "broken-0shot"}
    return record.model_copy(update={"scores": scores, "status": Status.PARTIAL, "missing": {"broken-0shot": WHY}})


def mirror(plan: Plan) -> None:
    """Call the verb ``mirror``."""
    done = CliRunner().invoke(app, ["mirror", str(plan.sweep.path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def client_of(plan: Plan) -> MlflowClient:
    return MlflowClient(f"sqlite:///{plan.root}/mlflow.db")


def runs(plan: Plan) -> dict[str, Run]:
    """Return the runs of a sweep's cells as MLflow's API shows them, by cell; two of one cell fail."""
    client = client_of(plan)
    experiment = client.get_experiment_by_name(plan.sweep.file.name)
    found = client.search_runs([experiment.experiment_id], "tags.`massive_sft.cell` != ''")
    by_cell = {run.data.tags["massive_sft.cell"]: run for run in found}
    assert len(by_cell) == len(found) == len(plan.cells)
    return by_cell


def tags(plan: Plan, name: str) -> set[str]:
    return {run.data.tags[f"massive_sft.{name}"] for run in runs(plan).values()}


def benchmarks(plan: Plan) -> set[str]:
    """Return the benchmarks of which any run shows a score or a gain."""
    names = {key.removeprefix("gain/") for run in runs(plan).values() for key in run.data.metrics}
    return {name.split("/")[0] for name in names} & {"quiz", "prose", "broken"}


def columns(plan: Plan) -> list[str] | None:
    experiment = client_of(plan).get_experiment_by_name(plan.sweep.file.name)
    shown = view_columns(experiment.tags[TAG])
    return None if shown is None else shown[0]


def test_what_another_sweep_added_and_failed_at_is_not_shown_in_this_sweeps_experiment(root: Path) -> None:
    first = record(sweep(root, "first", QUIZ))
    mirror(first)
    second = record(sweep(root, "second", QUIZ, PROSE, BROKEN, setting="tuned"), broken)
    mirror(second)
    mirror(plan_of(first.sweep.path))
    assert (tags(first, "status"), tags(first, "missing"), benchmarks(first)) == ({"COMPLETE"}, {"none"}, {"quiz"})
    assert columns(first) == ["quiz/acc", "gain/quiz/acc"]
    assert (tags(second, "status"), benchmarks(second)) == ({"PARTIAL"}, {"quiz", "prose"})
    assert tags(second, "missing") == {json.dumps({"broken-0shot": WHY})}
    for plan in (first, second):  # each under its own names
        assert {run.info.run_name for run in runs(plan).values()} == {str(item.cell.coordinates) for item in plan.cells}


def test_files_of_a_run_hold_the_record_as_the_sweep_asks_for_it(root: Path, tmp_path: Path) -> None:
    first = record(sweep(root, "first", QUIZ))
    record(sweep(root, "second", QUIZ, BROKEN), broken)
    mirror(first)
    run = next(iter(runs(first).values()))
    path = client_of(first).download_artifacts(run.info.run_id, "record.json", str(tmp_path))
    shown = json.loads(Path(path).read_text())
    assert (shown["status"], shown["missing"]) == ("COMPLETE", {})


def test_experiment_that_is_made_again_from_the_ledger_shows_the_same(root: Path, empty_store: bytes) -> None:
    first = record(sweep(root, "first", QUIZ))
    mirror(first)
    before = {cell: (run.data.metrics, run.data.params) for cell, run in runs(first).items()}
    record(sweep(root, "second", QUIZ, PROSE, BROKEN, setting="tuned"), broken)
    (root / "mlflow.db").write_bytes(empty_store)
    mirror(plan_of(first.sweep.path))
    assert {cell: (run.data.metrics, run.data.params) for cell, run in runs(first).items()} == before
    assert tags(first, "status") == {"COMPLETE"}


def test_scores_that_the_sweep_no_longer_asks_for_leave_its_runs_and_columns(root: Path) -> None:
    both = record(sweep(root, "first", QUIZ, PROSE))
    mirror(both)
    assert benchmarks(both) == {"quiz", "prose"}
    quiz = sweep(root, "first", QUIZ)
    mirror(quiz)
    assert (benchmarks(quiz), columns(quiz)) == ({"quiz"}, ["quiz/acc", "gain/quiz/acc"])
    kept = {cell: run.info.run_id for cell, run in runs(quiz).items()}
    client_of(quiz).log_metric(next(iter(kept.values())), "somebodys_own", 1.0)
    mirror(sweep(root, "first", QUIZ, PROSE))  # asked for again: it is there
    again = runs(both)
    assert benchmarks(both) == {"quiz", "prose"}
    assert {cell: run.info.run_id for cell, run in again.items()} == kept
    assert sum("somebodys_own" in run.data.metrics for run in again.values()) == 1


def test_foreign_scores_that_were_mirrored_before_are_gone_after_the_next_mirror(root: Path) -> None:
    first = record(sweep(root, "first", QUIZ))
    record(sweep(root, "second", QUIZ, PROSE, BROKEN), broken)
    names = {item.cell.id: item.cell.coordinates for item in first.cells}
    assert not mirror_all(Ledger.open(root), "first", names, "")  # as it was done before
    assert (tags(first, "status"), benchmarks(first)) == ({"PARTIAL"}, {"quiz", "prose"})
    mirror(plan_of(first.sweep.path))
    assert (tags(first, "status"), benchmarks(first)) == ({"COMPLETE"}, {"quiz"})


class Said(list[str]):
    """Keeps what a run says, and the records that it tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.records = list[Record]()

    def listen(self, event: RunEvent) -> None:
        if isinstance(event, CellRecorded):
            self.records.append(event.record)

    def say(self, text: str) -> None:
        self.append(text)


def test_bug_in_the_report_leaves_a_complete_run_complete(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_report(*_: object) -> Path:
        raise KeyError("a column that nobody has")

    monkeypatch.setattr("massive_sft.running.execute.write_report", broken_report)
    plan, said = record(sweep(root, "first", QUIZ)), Said()
    with register_run(Ledger.open(root).sweeps, "first", "test") as run:
        after = execute(plan, plan, run, lambda *_: None, said, StopSignal())
    assert set(after.plan.statuses) == {Status.COMPLETE}
    assert [line for line in said if "no report could be made of the records: KeyError: 'a column" in line], said


def test_run_of_a_part_mirrors_what_its_sweep_asks_and_keeps_the_gains(root: Path) -> None:
    first = record(sweep(root, "first", QUIZ))
    mirror(first)
    shown = runs(first)
    record(sweep(root, "second", QUIZ, PROSE, BROKEN), broken)
    whole = plan_of(first.sweep.path)
    part = select_cells(whole, parse_where("epoch=2"))
    assert not part.base

    def score_again(plan: Plan, listen: Listen, work: object) -> None:
        record(sweep(root, "second", QUIZ, PROSE, BROKEN), broken)
        for item in plan.cells:
            made = ledger.read_record(item.cell.id)
            assert made is not None and (made.status, len(made.scores)) == (Status.PARTIAL, 2)
            listen(CellRecorded(item.cell, made))

    said, ledger = Said(), Ledger.open(root)
    with register_run(ledger.sweeps, "first", "test") as run:
        execute(part, whole, run, score_again, said, StopSignal())
    assert [(made.status, len(made.scores)) for made in said.records] == [(Status.COMPLETE, 1)] * len(part.cells)
    assert (tags(first, "status"), benchmarks(first)) == ({"COMPLETE"}, {"quiz"})
    after = runs(first)
    assert {cell: run.data.metrics for cell, run in after.items()} == {
        cell: run.data.metrics for cell, run in shown.items()
    }
    assert {run.info.run_id for run in after.values()} == {run.info.run_id for run in shown.values()}
