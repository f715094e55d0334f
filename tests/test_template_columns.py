"""MLflow's columns where a sweep asks for a benchmark under several templates, as that of a base model is."""

from __future__ import annotations

from pathlib import Path

from sample_records import plan_of, sweep_file, write_records

from massive_sft.planning.outcome import AsPlanAsks
from massive_sft.planning.plan import Plan
from massive_sft.tracking.run_fields import CellRun
from massive_sft.tracking.source import CellSource

LORA = {"method": "lora", "lr": 1e-4, "batch": 32}


def plan_under(folder: Path, *templates: str) -> Plan:
    """Plan a sweep of one training under each of these templates, and write a record for every cell."""
    block = {"name": "A", "model": "small", "mixture": "one", "setting": list(templates), "schedule": "constant"}
    blocks = [block | {"horizon": 1, "snapshots": 1}]
    settings = {name: LORA | {"template": name} for name in templates}
    made = plan_of(sweep_file(folder, settings=settings, blocks=blocks))
    ledger = write_records(made)
    for item in made.cells:
        ledger.write_cell(item.cell.id, item.cell.content)
    return made


def shown_runs(made: Plan) -> list[CellRun]:
    names = {item.cell.id: item.cell.coordinates for item in made.cells}
    source = CellSource(made.open_ledger(create=False), names, AsPlanAsks(made))
    return [source.read(cell)[1] for cell in names]


def test_base_model_under_two_templates_shares_its_columns_with_what_was_tuned_under_each(tmp_path: Path) -> None:
    runs = shown_runs(plan_under(tmp_path, "paper", "chat"))
    columns = {
        run.params["setting"]: {name for name in run.main if not name.startswith("gain/")} for run in runs
    }  # fmt: skip
    assert columns["paper"] == {"quiz paper/acc", "prose paper/bits_per_byte"}
    assert columns["chat"] == {"quiz chat/acc", "prose chat/bits_per_byte"}
    assert columns["none"] == columns["paper"] | columns["chat"]


def test_second_template_has_what_was_shown_under_one_written_anew(tmp_path: Path) -> None:
    alone, both = plan_under(tmp_path, "paper"), plan_under(tmp_path, "paper", "chat")
    before, after = ({run.cell: run for run in shown_runs(made)} for made in (alone, both))
    for item in alone.cells:
        cell = item.cell.id
        assert "quiz/acc" in before[cell].main and "quiz paper/acc" in after[cell].main
        assert before[cell].version[1] != after[cell].version[1]
        assert AsPlanAsks(alone).stamp(cell) != AsPlanAsks(both).stamp(cell)
