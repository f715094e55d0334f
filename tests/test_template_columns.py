"""A benchmark that a sweep asks for under several templates: MLflow's columns, and cells side by side."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from sample_records import plan_of, sweep_file, write_records

from massive_sft.cli.answers import answers_view
from massive_sft.cli.cell_lookup import find_cell
from massive_sft.cli.diff import diff_view
from massive_sft.core.fingerprint import fingerprint
from massive_sft.ledger.record import Record
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
    ledger = write_records(made, by_what_was_asked)
    for item in made.cells:
        ledger.write_cell(item.cell.id, item.cell.content)
    return made


def by_what_was_asked(record: Record) -> Record:
    scores = {fingerprint(item.asked)[:16]: item for item in record.scores.values()}
    return record.model_copy(update={"scores": scores})


def text_of(part: object) -> str:
    console = Console(width=200)
    with console.capture() as text:
        console.print(part)
    return text.get()


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


def test_cells_under_two_templates_are_compared_under_both_names_each_with_its_prompt(tmp_path: Path) -> None:
    made = plan_under(tmp_path, "paper", "chat")
    cells = {item.cell.coordinates.setting: item.cell.id for item in made.cells}
    matches = [find_cell(made, made.open_ledger(create=False), cells[name]) for name in ("paper", "chat")]
    assert "quiz-0shot [paper / chat] *" in text_of(diff_view(*matches))
    said = {"answer": "a", "extracted": None, "value": 1.0, "logprob": None, "finish": None}
    asked = [next(protocol for protocol, of in item.record.scores.items() if "quiz" in of.tasks) for item in matches]
    both = [said | {"protocol": protocol, "prompt": f"put {n}"} for n, protocol in enumerate(asked)]
    row = {
        "benchmark": "quiz-0shot",
        "task": "quiz",
        "doc": 3,
        "draw": 0,
        "protocol": asked[0],
        "kind": "generate_until",
    }
    row |= {"prompt": "put 0", "gold": "a", "metric": "acc", "answers": both}
    text = text_of(answers_view(matches, [row], 1, ""))
    assert "quiz-0shot [paper / chat] quiz 3" in text
    assert all(f"asked of {item.id}:\nput {n}\n" in text for n, item in enumerate(matches))
    row["answers"] = [said | {"protocol": asked[0], "prompt": "put 0"}] * 2
    assert "quiz-0shot quiz 3\nput 0\n" in text_of(answers_view(matches, [row], 1, ""))
