"""What fails in a cell's scores and measures leaves the others, says why in words, and is tried again alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweep import small_sweep

from massive_sft.core.errors import InvalidInput, LeaseLost, Problem, Unsupported, describe_error
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan, perplexity_key
from massive_sft.running.failures import missing_on_failure
from massive_sft.running.inline import run_inline
from massive_sft.sweep.load import load_sweep

TASK = """task: own
dataset_path: json
dataset_kwargs: {data_files: {test: q.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
process_results: !function rules.judge
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
RULES = """class Bad(Exception):
    pass


def judge(doc, results):
    raise Bad
"""


def sweep_with_own_task(folder: Path) -> Path:
    """A sweep of one adapter with two benchmarks; the second one's metric raises a class of its own, without a word."""
    folder.mkdir(exist_ok=True)
    (folder / "q.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (folder / "own.yaml").write_text(TASK)
    (folder / "rules.py").write_text(RULES)
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    facts = folder / "world" / "tasks" / "facts_gen.yaml"
    tasks = [{"path": str(folder / "own.yaml")}, {"path": str(facts), "limit": 2}]
    evaluation = {"protocol": {"dtype": "fp32"}, "tasks": tasks}
    return small_sweep(folder, evaluation=evaluation, blocks=[block | {"horizon": 1, "snapshots": [1]}])


def run(path: Path) -> dict[str, Record]:
    plan = make_plan(load_sweep(path))
    run_inline(plan, lambda _: None)
    return {str(record.coordinates["method"]): record for record in Ledger.open(plan.root).records()}


@pytest.mark.timeout(120)
def test_failing_benchmark_and_measures_leave_the_others_and_are_retried_alone(tmp_path: Path) -> None:
    path = sweep_with_own_task(tmp_path)
    plan = make_plan(load_sweep(path))
    (run_plan,) = plan.runs
    ledger = Ledger.open(plan.root)
    # Two places that cannot be written.
    blocked = [
        ledger.cache_dir("perplexity") / perplexity_key(run_plan.trajectory.recipe),
        ledger.cell_dir(run_plan.cells[0].cell.id) / "layers.parquet" / "in-the-way",
    ]
    for place in blocked:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")
    found = run(path)
    assert {name: record.status for name, record in found.items()} == dict.fromkeys(("none", "lora"), Status.PARTIAL)
    for record in found.values():
        assert [scores.benchmark for scores in record.scores.values()] == ["facts_gen-0shot"]
        assert record.missing["own-0shot"].strip() not in ("", "Bad", "Bad:")
        assert "Bad" in record.missing["own-0shot"]
    trained = found["lora"]
    assert set(trained.missing) == {"own-0shot", "perplexity", "layer_change"}
    assert set(trained.measures) == {"token_length"}
    assert "Error" in trained.missing["perplexity"] and "perplexity" in trained.missing["perplexity"]
    assert (ledger.cell_dir(trained.cell) / "traceback.txt").is_file()

    for place in blocked:
        place.unlink()
    blocked[1].parent.rmdir()
    (tmp_path / "rules.py").write_text(RULES.replace("raise Bad", 'return {"exact_match": 0.0}'))
    (tmp_path / "own.yaml").write_text(TASK + "# mended\n")
    again = run(path)
    assert {record.status for record in again.values()} == {Status.COMPLETE}
    assert set(again["lora"].measures) == {"token_length", "perplexity", "layer_change"}
    assert trained.scores.items() <= again["lora"].scores.items()
    assert again["lora"].attempt == trained.attempt  # not trained again
    assert make_plan(load_sweep(path)).todo == ()


@pytest.mark.parametrize("error", [LeaseLost("taken"), OSError(28, "No space left on device")])
def test_lost_lease_and_full_disk_end_the_cell(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), missing_on_failure({}, "mmlu", Folder(tmp_path)):
        raise error


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001
        return caught


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(Unsupported("too long")), "too long"),
        (
            raised(InvalidInput([Problem("m", "is no model"), Problem("d", "is no file")])),
            "m: is no model; d: is no file",
        ),
        (raised(ValueError("one\ntwo")), "ValueError: one"),
        (raised(KeyError("q")), "KeyError: 'q'"),
        (
            raised(RuntimeError("while generating"), UnicodeDecodeError("utf-8", b"\xef", 0, 1, "bad")),
            "generating (because of UnicodeDecodeError: ",
        ),
        (raised(StopIteration()), "StopIteration without a message, raised in raised of "),
        (StopIteration(), "StopIteration without a message"),
    ],
)
def test_error_of_any_code_is_put_in_words(error: BaseException, words: str) -> None:
    assert words in describe_error(error)
