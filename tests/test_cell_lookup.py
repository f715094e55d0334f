"""``show``, ``logs``, ``diff`` and ``export`` take any id that ``status`` prints, and find its sweep by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import call
from sample_records import plan_of, sweep_file, write_records

from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.plan import CellPlan, Plan


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A sweep in the current folder, each of whose cells has a record but those of the first run and the first base."""
    monkeypatch.chdir(tmp_path)
    plan = plan_of(sweep_file(tmp_path))
    (tmp_path / "notes.yaml").write_text("no: sweep\n")
    left = {plan.base[0].cell.id, *(cell.cell.id for cell in plan.runs[0].cells)}

    def some(record: Record) -> Record | None:
        return None if record.cell in left else record

    write_records(plan, some)
    return plan_of(plan.sweep.path)


def beginning(plan: Plan, item: CellPlan) -> str:
    """Return the shortest beginning of a cell's id that no other has."""
    others = [cell.cell.id for cell in plan.cells if cell is not item]
    return next(
        item.cell.id[:length] for length in range(1, 17) if not any(o.startswith(item.cell.id[:length]) for o in others)
    )


def test_every_id_that_status_prints_is_an_address_without_naming_the_sweep(plan: Plan) -> None:
    printed = {row["cell"]: row for row in json.loads(call("status", plan.sweep.path, "--json")[1])}
    assert len(printed) == 18
    for item in plan.cells:
        code, text = call("show", beginning(plan, item))
        assert code == 0 and item.cell.id in text and printed[item.cell.id]["status"] in text.splitlines()[0]
        code, text = call("logs", beginning(plan, item), "--json")
        assert code == 0 and json.loads(text)["status"] == printed[item.cell.id]["status"]


def test_waiting_cells_say_what_is_asked_of_them(plan: Plan) -> None:
    waiting = plan.runs[0].cells[1]
    code, text = call("show", waiting.cell.id)
    assert code == 0 and "WAITING" in text and "no record yet; asked for: quiz-0shot, prose-0shot, perplexity" in text
    shown = json.loads(call("show", waiting.cell.id, "--json")[1])
    assert (shown["cell"], shown["status"], shown["scores"]) == (waiting.cell.id, "WAITING", {})
    assert shown["trajectory"] == plan.runs[0].trajectory.id
    code, text = call("export", waiting.cell.id, plan.root / "out")
    assert code == 2 and "it is not trained yet" in text
    code, text = call("diff", waiting.cell.id, plan.cells[5].cell.id)
    assert code == 0 and f"no record yet: {waiting.cell.id}" in text


def test_running_cell_is_shown_as_running(plan: Plan) -> None:
    with Ledger.open(plan.root).begin_attempt(plan.runs[0].trajectory.id, "test") as attempt:  # type: ignore[union-attr]
        assert attempt.number == 1
        attempt.take_up()
        code, text = call("show", plan.runs[0].cells[0].cell.id)
    assert code == 0 and "RUNNING" in text


def test_cell_of_a_sweep_that_never_ran_is_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps").mkdir()
    monkeypatch.chdir(tmp_path)
    plan = plan_of(sweep_file(tmp_path / "sweeps"))
    for verb in ("show", "logs"):
        code, text = call(verb, plan.base[0].cell.id)
        assert code == 0 and "WAITING" in text
    assert not plan.root.exists()


def test_storage_root_names_its_sweep_and_shows_what_no_sweep_asks_for_any_more(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    waiting, done = plan.runs[0].cells[0].cell.id, plan.runs[1].cells[0].cell.id
    code, text = call("show", done)
    assert code == 2 and "--sweep FILE" in text
    for cell in (waiting, done):
        assert call("show", cell, "--sweep", plan.root)[0] == 0
    plan.sweep.path.unlink()
    assert call("show", done, "--sweep", plan.root)[0] == 0
    code, text = call("show", waiting, "--sweep", plan.root)
    assert code == 2 and "is the beginning of no cell's id" in text


def test_misread_id_is_answered_with_the_nearest(plan: Plan) -> None:
    cell = plan.runs[1].cells[0].cell.id
    code, text = call("show", cell[:8] + "zzz")
    assert code == 2 and f"did you mean {cell}" in text and "status SWEEP" in text


def test_cell_of_two_sweeps_is_shown_as_one_asks_which_is_told(plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(plan.sweep.path.read_text().replace("name: made", "name: other"))
    cell = plan.cells[5].cell.id
    code, text = call("show", cell)
    assert code == 0 and f"{cell}: as other.yaml asks; it is a cell of sweep.yaml, too" in text
    assert call("diff", cell, plan.cells[6].cell.id)[0] == 0
    assert call("show", cell, "--sweep", other)[0] == 0


def test_draft_of_a_sweep_that_never_ran_does_not_say_what_a_cell_is(plan: Plan, tmp_path: Path) -> None:
    save_last_plan(plan, Ledger.open(plan.root))
    draft = tmp_path / "draft.yaml"  # stands before the other in the alphabet
    draft.write_text(plan.sweep.path.read_text().replace("name: made", "name: draft"))
    cell = plan.cells[5].cell.id
    code, text = call("show", cell)
    assert code == 0 and f"{cell}: as sweep.yaml asks; it is a cell of draft.yaml, too" in text


def test_overlay_needs_its_sweep_file(plan: Plan, tmp_path: Path) -> None:
    code, text = call("show", plan.cells[0].cell.id, "--overlay", tmp_path / "notes.yaml")
    assert code == 2 and "needs the sweep file" in text


def test_record_with_names_of_another_version_is_shown_and_refused_with_a_sentence(plan: Plan) -> None:
    ledger, item = Ledger.open(plan.root), plan.runs[1].cells[0]
    record = ledger.read_record(item.cell.id)
    assert record is not None
    ledger.write_record(record.model_copy(update={"coordinates": {"model": "m", "flavour": "sweet"}}))
    plan.sweep.path.unlink()
    code, text = call("show", item.cell.id, "--sweep", plan.root)
    assert code == 0 and "flavour=sweet, model=m" in text
    code, text = call("logs", item.cell.id, "--sweep", plan.root)
    assert code != 0 and "has names that this version does not know" in text and "Traceback" not in text


def test_two_cells_are_of_one_sweep_where_one_has_both(plan: Plan, tmp_path: Path) -> None:
    """Else scores would be set beside each other that were asked for under other templates, in another root."""
    block = {"name": "A", "model": "small", "mixture": "one", "setting": "full", "schedule": "constant"}
    (tmp_path / "first").mkdir()
    other = sweep_file(tmp_path / "first", blocks=[block | {"horizon": 7, "snapshots": [7]}])
    write_records(plan_of(other.rename(tmp_path / "another.yaml")))  # of which the base row is a cell, too
    base = next(item.cell.id for item in plan.base if item.cell.coordinates.model == "small")
    trained = next(item.cell.id for item in plan.cells if item.cell.recipe is not None)
    code, text = call("diff", base, trained)
    assert code == 0 and f"{base}: as sweep.yaml asks; it is a cell of another.yaml, too" in text
    assert "as another.yaml asks" in call("show", base)[1]
