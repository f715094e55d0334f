"""One sweep end to end in this process, then everything that may happen to it afterwards."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sample_records import note_report
from small_sweep import one_lora, small_sweep
from typer.testing import CliRunner

import massive_sft as ms
from massive_sft.cli.app import app
from massive_sft.cli.invalidate import find_invalidated, set_aside
from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.stop import StopSignal
from massive_sft.cost.calibrate import calibrate
from massive_sft.cost.cost_table import read_cost_table
from massive_sft.cost.estimate import estimate
from massive_sft.evaluation import shards, so_far
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.ledger.last_plan import sweeps_keeping_snapshot
from massive_sft.ledger.lease import Lease, LeaseWatch, read_lease
from massive_sft.ledger.paths import texts_file
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.run_requirements import is_still_required
from massive_sft.ledger.storage import Folder
from massive_sft.ledger.store import Ledger
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.outcome import find_remedies
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.report.write import write_report
from massive_sft.running.cell import CellEvaluator, evaluate_cell
from massive_sft.running.check import check
from massive_sft.running.events import (
    BenchmarkProgressed,
    BenchmarkScored,
    CellRecorded,
    CellSkipped,
    RunEvent,
    TrainingProgressed,
    TrainingStarted,
)
from massive_sft.running.inline import run_inline
from massive_sft.running.outcome import remove_snapshot, snapshot_folder
from massive_sft.running.samples import samples_of
from massive_sft.running.trial import make_record_writer, retain, train_run
from massive_sft.study.results import results_of
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import KeepSnapshots
from massive_sft.tracking.run_fields import describe_record
from massive_sft.training.events import StepDone

pytestmark = pytest.mark.timeout(240)


@dataclass
class Result:
    """What a run told."""

    happened: list[RunEvent] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [event.record for event in self.happened if isinstance(event, CellRecorded)]


def run(path: Path, retrain: bool = False) -> tuple[Plan, Result, list[type]]:
    """Run a sweep file; return the plan beforehand, what happened, and the classes of that."""
    result = Result()
    plan = make_plan(load_sweep(path))
    run_inline(plan, result.happened.append, retrain)
    return plan, result, [type(event) for event in result.happened]


def records(path: Path) -> dict[str, Record]:
    root = make_plan(load_sweep(path)).root
    return {
        f"{r.coordinates['setting']}-{r.coordinates['epoch']}": r for r in Ledger.open(root, create=False).records()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that has run to its end; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    path = small_sweep(folder)
    assert check(make_plan(load_sweep(path))) == []
    run(path)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep's ledger, under a sweep file of its own."""
    shutil.copytree(finished / "ledger", tmp_path / "ledger")
    return tmp_path


def test_inline_run_completes_every_cell(finished: Path) -> None:
    found = records(finished / "sweep.yaml")
    assert set(found) == {"none-0", "full-1", "full-2", "lora-1", "lora-2"}
    for name, record in found.items():
        assert record.status is Status.COMPLETE, name
        benchmarks = {score.benchmark: score.tasks for score in record.scores.values()}
        assert set(benchmarks) == {"facts_mc-0shot", "facts_gen-0shot"}
        assert benchmarks["facts_mc-0shot"]["facts_mc"]["acc,none"].n == 12
    trained = found["full-2"]
    assert set(trained.measures) == {"perplexity", "layer_change", "token_length"}
    assert trained.counts["total"]["samples"] == 24
    assert (trained.training["steps"], found["full-1"].training["steps"], trained.attempt) == (6, 3, 1)
    assert trained.training["last_loss"] < trained.training["first_loss"]
    assert (trained.training["layout"]["zero"], trained.training["kernels"]) == ("auto", "plain")
    assert {record.cost["attention"] for record in found.values()} == {trained.training["attention"]} == {"sdpa"}
    assert trained.provenance["sweep_file"]["name"] == "sweep.yaml"


def test_cell_that_the_tree_engine_answers_plainly_says_why(tmp_path: Path) -> None:
    tasks = [{"path": str(tmp_path / "world" / "tasks" / "facts_mc.yaml"), "limit": 12}]
    path = one_lora(tmp_path, evaluation={"protocol": {"dtype": "fp32", "engine": "trie"}, "tasks": tasks})
    config = tmp_path / "world" / "models" / "tiny-llama" / "config.json"
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}  # hangs on the longest sequence of a batch
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": rope}))
    _, result, _ = run(path)
    assert {record.status for record in result.records} == {Status.COMPLETE}
    whys = {str(record.cost["plainly"]) for record in result.records}
    assert len(result.records) == 3 and len(whys) == 1
    exported = ["export", result.records[-1].cell, str(tmp_path / "exported"), "--sweep", str(path)]
    assert CliRunner().invoke(app, exported).exit_code == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"by engine `trie` (plainly: {whys.pop()})" in card


def test_training_that_another_run_has_is_skipped_by_the_name_of_a_cell_to_do(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(one_lora(tmp_path)))
    first, last = plan.runs[0].cells
    run = replace(plan.runs[0], cells=(replace(first, recorded=Status.COMPLETE, unmet=()), last))
    happened: list[RunEvent] = []
    with plan.open_ledger().begin_attempt(run.trajectory.id, "elsewhere:1") or pytest.fail("is free"):
        train_run(run, make_record_writer(plan), pytest.fail, happened.append, pytest.fail)
    assert happened == [CellSkipped(str(last.cell.coordinates), (last.cell.id,))]


def test_later_snapshot_has_moved_further(finished: Path) -> None:
    found = records(finished / "sweep.yaml")
    for method in ("full", "lora"):
        first, last = (found[f"{method}-{epoch}"].measures["layer_change"]["relative"] for epoch in (1, 2))
        assert 0 < first < last


def test_retention_keeps_adapters_and_drops_full_weights(finished: Path) -> None:
    kept = sorted(path.parent.name for path in (finished / "ledger").rglob("adapter_model.safetensors"))
    assert kept == ["epoch-1", "epoch-2"]
    assert not list((finished / "ledger" / "trajectories").rglob("model.safetensors"))


def test_rerun_has_nothing_to_do(finished: Path) -> None:
    plan, result, happened = run(finished / "sweep.yaml")
    assert all(cell.is_done for cell in plan.cells)
    assert (result.records, happened) == ([], [])
    page = finished / "ledger" / "sweeps" / "small" / "report" / "report.html"
    assert not page.exists(), "as where a run is killed behind its last record"
    ms.run(finished / "sweep.yaml")
    assert page.is_file()
    ledger, written = plan.open_ledger(), page.stat().st_mtime_ns
    ledger.write_record(next(ledger.records()))
    first, second = (CliRunner().invoke(app, ["run", str(finished / "sweep.yaml")]) for _ in range(2))
    assert first.exit_code == 0 and page.stat().st_mtime_ns > written, first.output
    assert first.output.startswith("nothing is left but the report: 5 COMPLETE\n")
    assert (second.exit_code, second.output) == (0, "nothing to do: 5 COMPLETE\n")


def test_every_file_a_record_rests_on_has_its_checksum(finished: Path) -> None:
    from massive_sft.core.fingerprint import hash_file

    for record in records(finished / "sweep.yaml").values():
        for name, checksum in record.files.items():
            assert hash_file(finished / "ledger" / name) == checksum


def test_show_prints_a_record(finished: Path) -> None:
    record = records(finished / "sweep.yaml")["lora-2"]
    arguments = ["show", record.cell[:6], "--sweep", str(finished / "sweep.yaml")]
    text = CliRunner().invoke(app, arguments).output
    for part in (record.cell, "COMPLETE", "facts_mc", "perplexity", "layer_change"):
        assert part in text
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert shown["cell"] == record.cell


@pytest.fixture
def one_more(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished sweep with a benchmark more, which is answered in several parts that are told."""
    monkeypatch.setattr(shards, "SHARD_REQUESTS", 16)
    monkeypatch.setattr(so_far, "EVERY_S", 0.0)
    return small_sweep(copy, evaluation=with_task(copy, "arith_mc"), blocks=only_lora())


def test_new_benchmark_scores_kept_adapters_without_training_and_tells_of_its_parts(copy: Path, one_more: Path) -> None:
    path = one_more
    _, result, happened = run(path)
    parts = [event.part for event in result.happened if isinstance(event, BenchmarkProgressed)]
    assert parts and all(part.scores.benchmark == "arith_mc-0shot" and part.answered < part.of for part in parts)
    assert not list((copy / "ledger").rglob("so_far.json"))
    assert TrainingStarted not in happened
    assert [record.status for record in result.records] == [Status.COMPLETE] * 3
    assert len(records(path)["lora-2"].scores) == 3


def test_scoring_that_goes_on_says_so_and_teaches_no_estimate_what_a_benchmark_takes(
    one_more: Path,
) -> None:
    path = one_more
    plan, stop = make_plan(load_sweep(path)), StopSignal()

    def stop_after_a_shard(event: RunEvent) -> None:
        if isinstance(event, BenchmarkProgressed):
            stop.request("enough")

    run_inline(plan, stop_after_a_shard, stop=stop)
    _, result, _ = run(path)
    went_on, *whole = result.records
    (asked,) = (item.id for cell in plan.base for item in cell.unmet if item.label == "arith_mc-0shot")
    assert went_on.cost["resumed"] == [asked]
    assert len(whole) == 2 and all("resumed" not in record.cost for record in whole)
    told = {event.cell.id: event.resumed for event in result.happened if isinstance(event, BenchmarkScored)}
    assert told == {record.cell: record is went_on for record in result.records}
    parts = [event for event in result.happened if isinstance(event, BenchmarkProgressed)]
    assert {event.cell.id for event in parts if event.part.found} == {went_on.cell}
    calibrate(plan, Ledger.open(plan.root))
    learned = read_cost_table(plan.storage).scoring
    assert sum(rows[asked].count for rows in learned.values() if asked in rows) == len(whole)


def test_texts_are_measured_of_base_models_too_and_make_a_map(copy: Path) -> None:
    texts = ["a bird can fly", "two and three make five", "a fish can swim", "x" * 40]
    probes = copy / "probes.jsonl"
    probes.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "no more of them"]))
    asked: dict[str, Any] = {"texts": "probes.jsonl", "limit": len(texts)}
    path = small_sweep(copy, measures=[asked, asked | {"name": "two", "limit": 2}], blocks=only_lora())
    assert check(make_plan(load_sweep(path))) == []
    plan, _, happened = run(path)
    assert TrainingStarted not in happened
    found = records(path)
    (key,) = (key for key in found["none-0"].measures if key.startswith("texts:probes "))
    measured = {name: found[name].measures[key] for name in ("none-0", "lora-1", "lora-2")}
    assert len({numbers["perplexity"] for numbers in measured.values()}) == 3
    assert "perplexity" in found["lora-1"].measures, "what was measured before stays"

    base = make_plan(load_sweep(path)).base[0].cell.model
    model, tokenizer = load_for_scoring(base, None, "fp32"), load_tokenizer(base)
    expected = []
    for text in texts:
        tokens = torch.tensor([RequestEncoder(tokenizer).prefix, *tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            logprobs = model(tokens[None]).logits[0, :-1].double().log_softmax(-1)
        expected.append(float(logprobs.gather(1, tokens[1:, None]).sum()))
    ledger, name = Ledger.open(plan.root), texts_file(key)
    vector = pq.read_table(ledger.cell_dir(found["none-0"].cell) / name)
    assert vector["logprob"].to_pylist() == pytest.approx(expected, abs=1e-4)
    numbers = measured["none-0"]
    assert numbers["perplexity"] == pytest.approx(math.exp(-sum(expected) / numbers["tokens"]), rel=1e-5)
    per_byte = -sum(expected) / math.log(2) / sum(map(len, texts))
    assert numbers["bits_per_byte"] == pytest.approx(per_byte, rel=1e-5)

    fresh = make_plan(load_sweep(path))
    assert all(cell.is_done for cell in fresh.cells)
    page = write_report(fresh, results_of(fresh), copy / "report").read_text()
    assert page.count("Map of models") and "4 texts, 3 models" in page and "2 texts, 3 models" in page
    assert list(results_of(fresh).model_map.groupby("texts").size()) == [3, 3]
    table = (copy / "report" / "table.csv").read_text().splitlines()
    assert {"perplexity probes", "bits_per_byte probes", "perplexity two"} <= set(table[0].split(","))
    points = {point.key: point.value for point in describe_record(found["lora-2"], {}, None, "ledger").points}
    assert points["texts_probes/perplexity"] == measured["lora-2"]["perplexity"]

    # Another content is another measure, and a broken file is told before anything runs.
    probes.write_text(json.dumps({"other": "text"}) + "\n")
    edited = make_plan(load_sweep(path))
    assert not any(cell.is_done for cell in edited.cells)
    (problem, again) = check(edited)
    assert str(problem) == str(again).replace("measures[1]", "measures[0]")
    assert "probes.jsonl, line 1: must have a text that is not empty under this key" in str(problem)
    probes.write_text(json.dumps({"text": "half of \ud83d"}) + "\n")
    problem, _ = check(make_plan(load_sweep(path)))
    assert "probes.jsonl, line 1: holds half of a surrogate pair, which is no text" in str(problem)


def test_early_answers_are_scored_marked_and_finished_by_a_sweep_that_asks_for_all_questions(copy: Path) -> None:
    tasks = [{"path": str(copy / "world" / "tasks" / "facts_mc.yaml"), "limit": 40}]
    asked = {"protocol": {"dtype": "fp32"}, "tasks": tasks}
    path = small_sweep(copy, evaluation=asked | {"until": 60}, blocks=only_lora())
    plan, result, _ = run(path)
    assert [record.status for record in result.records] == [Status.COMPLETE] * 3
    results = results_of(make_plan(plan.sweep))
    shown = results.scores[results.scores["primary"]].set_index("cell")
    trained = shown[shown["method"] == "lora"]
    assert list(shown["early"]) == [name == "lora" for name in shown["method"]]
    assert set(trained["early_of"]) == {40} and (trained["n"] < 40).all() and (trained["early_half_width"] <= 60).all()
    assert set(trained["full_protocol"]) == set(shown.loc[shown["method"] == "none", "protocol"])
    for row in results.primary_gains.to_dict("records"):
        own, base = (results.reader.read(row[name], key) for name, key in (
            ("cell", (row["protocol"], "facts_mc", row["metric"], "none")),
            ("base_cell", (row["full_protocol"], "facts_mc", row["metric"], "none")),
        ))  # fmt: skip
        before = dict(zip(base.documents, base.values, strict=True))
        assert row["gain"] == pytest.approx(own.values.mean() - np.mean([before[name] for name in own.documents]))
    answers = results.answers(trained.index)
    assert len(answers) == trained["n"].sum() and answers["value"].notna().all()
    full, fuller, _ = run(small_sweep(copy, evaluation=asked, blocks=only_lora()))
    assert len(fuller.records) == 2  # the base model has all
    rows = results_of(make_plan(full.sweep)).scores
    assert set(rows["n"]) == {40} and not rows["early"].any()
    again = make_plan(load_sweep(small_sweep(copy, evaluation=asked | {"until": "±1"}, blocks=only_lora())))
    assert all(cell.is_done for cell in again.cells) and not results_of(again).scores["early"].any()
    newest = Ledger.open(full.root).read_record(trained.index[0])
    assert newest is not None and not any(score.early for score in newest.scores.values())
    told = list[Problem]()
    odd = {"tasks": [{"path": str(copy / "world" / "tasks" / "facts_bpb.yaml"), "limit": 4}], "until": 1}
    assert check(make_plan(load_sweep(small_sweep(copy, evaluation=odd, blocks=only_lora()))), warn=told.append) == []
    assert "all questions of facts_bpb-0shot are asked: facts_bpb/bits_per_byte" in str(told[0])


def test_removed_snapshot_is_trained_again_only_when_asked(copy: Path) -> None:
    path = small_sweep(copy, evaluation=with_task(copy, "arith_mc"))
    _, result, happened = run(path)
    assert TrainingStarted not in happened
    partial = [record for record in result.records if record.status is Status.PARTIAL]
    assert {record.coordinates["setting"] for record in partial} == {"full"}
    assert all("run with --retrain" in record.missing["arith_mc-0shot"] for record in partial)
    assert len(records(path)["full-2"].scores) == 2, "what was there is kept"
    _, result, happened = run(path, retrain=True)
    assert TrainingStarted in happened
    assert [record.status for record in result.records] == [Status.COMPLETE] * 2
    assert len(records(path)["full-2"].scores) == 3


def test_retraining_gives_bit_identical_scores(copy: Path) -> None:
    before = records(small_sweep(copy))["full-2"]
    shutil.rmtree(copy / "ledger" / "trajectories")
    shutil.rmtree(copy / "ledger" / "cells")
    shutil.rmtree(copy / "ledger" / "records")
    shutil.rmtree(copy / "ledger" / "cache" / "scores")
    shutil.rmtree(copy / "ledger" / "index")
    run(copy / "sweep.yaml")
    after = records(copy / "sweep.yaml")["full-2"]
    assert after.scores == before.scores
    assert after.measures["layer_change"] == before.measures["layer_change"]


def test_benchmark_whose_data_is_missing_makes_the_cell_partial(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
    )
    evaluation = with_task(tmp_path, "facts_mc")
    evaluation["tasks"] = [*evaluation["tasks"][-1:], {"path": str(broken)}]
    path = small_sweep(tmp_path, evaluation=evaluation, blocks=only_lora(), measures=[])
    _, result, _ = run(path)
    assert [(record.status, list(record.missing)) for record in result.records] == [
        (Status.PARTIAL, ["broken-0shot"])
    ] * 3
    assert all(len(record.scores) == 1 for record in result.records)
    assert "none.jsonl" in result.records[0].missing["broken-0shot"]
    cell, command = result.records[0].cell, f"massive-sft retry {path}"
    for verb, told in (
        (["status", str(path)], f"{command} fills what 3 cells lack, once its reason is gone"),
        (["show", cell, "--sweep", str(path)], f"{command} --where cell={cell} fills what 1 cell lacks"),
        (["report", str(path), "--out", str(tmp_path / "out")], ""),
    ):
        done = CliRunner().invoke(app, verb, env={"COLUMNS": "400"})
        assert done.exit_code == 0 and told in done.output, done.output
    assert f"{command} fills what 3 cells lack" in (tmp_path / "out" / "report.html").read_text()


def test_diverged_run_is_a_result_and_not_retried(tmp_path: Path) -> None:
    settings = {"full": {"method": "full", "lr": 1e3, "batch": 4, "max_length": 128, "precision": "fp32"}}
    block = {"name": "A", "model": "llama", "mixture": "one", "setting": "full"}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
    path = small_sweep(tmp_path, settings=settings, blocks=[block], evaluation={"base": False})
    _, result, _ = run(path)
    (record,) = result.records
    assert record.status is Status.DIVERGED
    assert record.error
    assert record.scores == {}
    assert any(name.endswith("losses.jsonl") for name in record.files)
    plan, result, happened = run(path)
    assert (plan.todo, result.records, happened) == ((), [], [])


def test_error_in_one_trajectory_leaves_the_others(copy: Path) -> None:
    """A damaged adapter is set aside, its cell trained and scored again; the other cells stay as they were."""
    path = small_sweep(copy, evaluation=with_task(copy, "arith_mc"), blocks=only_lora())
    (weights,) = (copy / "ledger" / "trajectories").rglob("epoch-2/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    _, result, happened = run(path)
    found = {f"{record.coordinates['setting']}-{record.coordinates['epoch']}": record for record in result.records}
    assert found["none-0"].status is Status.COMPLETE
    assert found["lora-1"].status is Status.COMPLETE
    assert found["lora-2"].status is Status.PARTIAL
    assert TrainingStarted not in happened
    (sentence,) = find_remedies(make_plan(load_sweep(path)))
    assert f"retry {path} --retrain fills what 1 cell lacks" in sentence
    _, result, _ = run(path, retrain=True)
    assert [record.status for record in result.records] == [Status.COMPLETE]


def test_snapshot_added_between_is_trained_once_and_the_others_stay(tmp_path: Path) -> None:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant", "horizon": 3}
    run(small_sweep(tmp_path, blocks=[block | {"snapshots": [1, 3]}]))
    path = small_sweep(tmp_path, blocks=[block | {"snapshots": [1, 2, 3]}])
    _, result, happened = run(path)
    assert [(record.status, record.coordinates["epoch"]) for record in result.records] == [(Status.COMPLETE, 2)]
    assert happened.count(TrainingStarted) == 1
    assert run(path)[2] == []


def test_stale_plan_overwrites_nothing(tmp_path: Path) -> None:
    """A run planned before another one finished finds its work done."""
    path = small_sweep(tmp_path, blocks=only_full())
    stale = make_plan(load_sweep(path))
    run(path)
    before = records(path)
    result = Result()
    run_inline(stale, result.happened.append)
    assert not any(isinstance(event, TrainingStarted) for event in result.happened)
    assert records(path) == before


def test_failure_never_replaces_what_is_done(finished: Path) -> None:
    plan = make_plan(load_sweep(finished / "sweep.yaml"))
    stale = replace(plan.runs[0].cells[0], recorded=Status.WAITING)
    record = make_record_writer(plan).failed(stale, 1, "too late")
    assert record is not None and record.status is Status.COMPLETE


def test_equal_names_for_two_benchmarks_are_refused(tmp_path: Path) -> None:
    tasks = with_task(tmp_path, "facts_mc")["tasks"]
    path = small_sweep(tmp_path, evaluation={"tasks": [tasks[0], tasks[0] | {"limit": 5}]})
    with pytest.raises(InvalidInput, match="two benchmarks have one name"):
        make_plan(load_sweep(path))


def test_few_shot_settings_do_not_ask_again_for_zero_shot_scores(copy: Path) -> None:
    small_sweep(copy)
    evaluation = with_task(copy, "facts_mc")
    evaluation["protocol"] |= {"fewshot": {"seed": 5}}
    assert make_plan(load_sweep(small_sweep(copy, evaluation=evaluation))).todo == ()


def test_base_that_one_sweep_scored_is_done_for_another_on_the_same_root(copy: Path) -> None:
    mixtures = {"one": {"each": "arith", "samples": 24}}
    plan = make_plan(load_sweep(small_sweep(copy, name="other", mixtures=mixtures)))
    assert [cell.is_done for cell in plan.base] == [True]
    assert [cell.is_done for run in plan.runs for cell in run.cells] == [False] * 4


def test_damaged_score_cache_is_scored_again(copy: Path) -> None:
    for path in (copy / "ledger" / "cache" / "scores").rglob("*.json"):
        path.write_text('{"half')
    shutil.rmtree(copy / "ledger" / "cells")
    shutil.rmtree(copy / "ledger" / "records")
    _, result, _ = run(small_sweep(copy, blocks=only_lora()))
    assert [record.status for record in result.records] == [Status.COMPLETE] * 3


def test_leftover_of_a_killed_removal_does_no_harm(copy: Path) -> None:
    (adapter,) = (copy / "ledger" / "trajectories").rglob("epoch-1/adapter_model.safetensors")
    ledger, trajectory = Ledger.open(copy / "ledger"), adapter.parents[2].name
    (adapter.parents[1] / ".epoch-1.removed.x").mkdir()
    remove_snapshot(ledger, trajectory, 1)
    assert [path.name for path in adapter.parents[1].iterdir()] == ["epoch-2"]


def test_finished_attempt_leaves_no_weights_behind(finished: Path) -> None:
    assert not list((finished / "ledger" / "trajectories").glob("*/attempts/*/*"))


def test_missing_local_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    evaluation = {"protocol": {"dtype": "fp32"}, "tasks": [{"name": "no_such_task"}]}
    path = small_sweep(tmp_path, models={"llama": {"path": str(tmp_path / "none")}}, evaluation=evaluation)
    done = CliRunner().invoke(app, ["run", str(path), "--inline"])
    assert isinstance(done.exception, InvalidInput)
    assert "models.llama.path: there is no such file or folder" in str(done.exception)
    assert "no_such_task" in str(done.exception)  # what else is wrong is said with it
    assert not (tmp_path / "ledger").exists()


def other_weights(path: Path) -> Path:
    """Replace a sweep's base weights by others; return a copy of what they were."""
    weights = Path(make_plan(load_sweep(path)).base[0].cell.model.path or "") / "model.safetensors"
    kept, other = path.parent / "kept.safetensors", weights.with_name("other.tmp")
    if not kept.exists():
        shutil.copy2(weights, kept)
    save_file({name: tensor * 0.3 for name, tensor in load_file(kept).items()}, other, metadata={"format": "pt"})
    other.replace(weights)
    return kept


def counting(root: Path) -> list[str]:
    """Return what under a ledger could count as a result, or be gone on from."""
    places = ("cache/scores/*/*", "cells/*/scores/*", "cells/*/responses/**/*.gz")
    places += tuple(f"trajectories/*/{name}/**/*" for name in ("snapshots", "training", "resume"))
    return [str(path) for place in places for path in root.glob(place)]


def test_base_replaced_after_planning_fails_every_cell_and_nothing_of_it_counts(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    plan, result = make_plan(load_sweep(path)), Result()
    other_weights(path)
    run_inline(plan, result.happened.append)
    assert [record.status for record in result.records] == [Status.FAILED] * 5
    for record in result.records:
        assert f"{plan.base[0].cell.model.path}: changed since the run was planned" in str(record.error)
    assert counting(plan.root) == []


def test_base_replaced_while_it_is_scored_and_trained_on_leaves_nothing_and_put_back_gives_the_same(
    finished: Path, tmp_path: Path
) -> None:
    path = small_sweep(tmp_path, blocks=only_lora(), measures=[])
    plan, result = make_plan(load_sweep(path)), Result()
    weights = Path(plan.base[0].cell.model.path or "") / "model.safetensors"
    asked: list[int] = []

    def ask() -> bool:  # before the base's cell, before each of its shards, and so on
        asked.append(1)
        if len(asked) == 2:
            other_weights(path)
        return False

    def listen(event: RunEvent) -> None:
        result.happened.append(event)
        if isinstance(event, TrainingStarted):
            shutil.copy2(tmp_path / "kept.safetensors", weights)
        elif isinstance(event, TrainingProgressed) and isinstance(event.event, StepDone) and event.event.step == 2:
            other_weights(path)

    run_inline(plan, listen, stop=ask)
    assert [record.status for record in result.records] == [Status.FAILED] * 3
    assert any(isinstance(event, TrainingProgressed) for event in result.happened), "it had begun to train"
    assert counting(plan.root) == []
    shutil.copy2(tmp_path / "kept.safetensors", weights)
    run(path)
    expected, found = records(finished / "sweep.yaml"), records(path)
    assert {name: record.scores for name, record in found.items()} == {name: expected[name].scores for name in found}
    assert {record.status for record in found.values()} == {Status.COMPLETE}


def test_files_replaced_before_anything_is_done_are_said_at_the_end_of_the_run(tmp_path: Path) -> None:
    path = small_sweep(tmp_path, blocks=only_lora())
    plan = make_plan(load_sweep(path))
    checked = plan.root / "sweeps" / "small" / "plan.json"

    def replace_once_it_runs() -> None:
        while not checked.exists():
            time.sleep(0.01)
        other_weights(path)

    with ThreadPoolExecutor(1) as thread:
        replaced = thread.submit(replace_once_it_runs)
        done = CliRunner().invoke(app, ["run", str(path), "--inline"])
        replaced.result()
    assert done.exit_code == 1, done.output
    assert "3 cells are others now, for files that the sweep names changed: run the same command again" in done.output


def other_plan(plan: Plan, **policy: str) -> Plan:
    """Return the plan as of a sweep of another name and another policy on snapshots."""
    storage = plan.sweep.file.storage.model_copy(update={"keep_snapshots": KeepSnapshots(**policy)})
    file = plan.sweep.file.model_copy(update={"name": "other", "storage": storage})
    return replace(plan, sweep=replace(plan.sweep, file=file))


@pytest.mark.parametrize(("lora", "left"), [("all", [1, 2]), ("last", [2]), ("none", []), ("damaged", [1, 2])])
def test_snapshot_that_another_sweep_keeps_for_good_is_not_removed(copy: Path, lora: str, left: list[int]) -> None:
    plan = make_plan(load_sweep(small_sweep(copy)))
    ledger, run_plan = Ledger.open(plan.root), plan.runs[1]
    shutil.rmtree(plan.root / "sweeps")
    save_last_plan(other_plan(plan, lora="none" if lora == "damaged" else lora), ledger)
    if lora == "damaged":
        (ledger.sweep_dir("other") / "plan.json").write_text("{")
    retain(run_plan, KeepSnapshots(full="none", lora="none"), ledger)
    found = [epoch for epoch in (1, 2) if snapshot_folder(ledger, run_plan.trajectory.id, epoch).is_dir()]
    assert found == left


def test_snapshots_that_a_killed_run_left_go_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """As SIGKILL."""

    def killed(*_: object) -> None:
        raise Killed

    storage = {"root": str(tmp_path / "ledger"), "keep_snapshots": {"lora": "last"}}
    path = one_lora(tmp_path, evaluation={"base": False, "tasks": []}, measures=["token_length"], storage=storage)
    plan = make_plan(load_sweep(path))
    ledger, trajectory = Ledger.open(plan.root), plan.runs[0].trajectory.id
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("massive_sft.running.inline.retain", killed)
        ms.run(path, inline=True)
    assert all(cell.is_done for cell in make_plan(load_sweep(path)).cells)
    ms.run(path, inline=True)
    assert [snapshot_folder(ledger, trajectory, epoch).is_dir() for epoch in (1, 2)] == [False, True]


def test_run_says_what_it_wants_before_it_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_sweep(tmp_path)
    plan = make_plan(load_sweep(path))
    cell, sweeps = plan.runs[0].cells[0], Ledger(plan.storage).sweeps
    every, seen = [item.id for item in cell.unmet], []

    def refuse(*_: object) -> None:
        seen.extend(is_still_required(sweeps, cell.cell.id, answers) for answers in ([], every))
        raise InvalidInput(Problem("here", "ends the run"))

    monkeypatch.setattr("massive_sft.running.execute.require_runnable", refuse)
    done = CliRunner().invoke(app, ["run", str(path), "--inline"])
    assert isinstance(done.exception, InvalidInput)
    assert seen == [True, False]
    assert not list(sweeps.at("small").list("runs"))


def test_policy_of_an_edited_file_counts_after_a_run_that_had_nothing_to_do(copy: Path) -> None:
    storage = {"root": str(copy / "ledger")}
    for policy, kept in (("none", []), ("last", ["small"])):
        path = small_sweep(copy, storage=storage | {"keep_snapshots": {"full": policy, "lora": policy}})
        note_report(make_plan(load_sweep(path)))
        done = CliRunner().invoke(app, ["run", str(path), "--inline"])
        assert "nothing to do: 5 COMPLETE" in done.output
        cells = make_plan(load_sweep(path)).runs[0].cells
        assert [sweeps_keeping_snapshot(Ledger(Folder(copy / "ledger")).sweeps, cell.cell.id) for cell in cells] == [
            [],
            kept,
        ]


def test_data_replaced_after_planning_are_not_tokenised(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(small_sweep(tmp_path)))
    data = tmp_path / "world" / "data" / "facts.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InvalidInput, match=r"facts\.jsonl: changed since the run was planned"):
        samples_of(plan.runs[0], Ledger.open(plan.root))
    assert not list((plan.root / "cache" / "tokens").iterdir())


def test_scorer_that_lost_its_cell_writes_nothing_into_it(tmp_path: Path) -> None:
    path = small_sweep(tmp_path, measures=[])
    plan, result = make_plan(load_sweep(path)), Result()
    ledger = Ledger.open(plan.root)
    home = ledger.cell_dir(plan.base[0].cell.id)
    taken: list[Lease | None] = []

    def stand_still_meanwhile() -> bool:
        if not taken:
            clock = iter([0.0, 1e6])
            watch = LeaseWatch(lambda: next(clock))
            watch.may_be_taken(ledger.lease_of(home), read_lease(ledger.lease_of(home)))
            taken.append(Lease.acquire(ledger.lease_of(home), "somebody else", watch))
        return False

    evaluate_cell(
        plan.base[0], None, CellEvaluator(make_record_writer(plan), stand_still_meanwhile), result.happened.append
    )
    assert [type(event) for event in result.happened] == [CellSkipped]
    assert taken[0] is not None and taken[0].held()
    assert counting(plan.root) == []
    taken[0].release()


def with_task(folder: Path, name: str) -> dict[str, Any]:
    tasks = folder / "world" / "tasks"
    names = dict.fromkeys(("facts_mc", "facts_gen", name))
    return {
        "protocol": {"dtype": "fp32"},
        "tasks": [{"path": str(tasks / f"{one}.yaml"), "limit": 12} for one in names],
    }


def only_full() -> list[dict[str, Any]]:
    return [only_lora()[0] | {"setting": "full"}]


def only_lora() -> list[dict[str, Any]]:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora"}
    return [block | {"schedule": "constant", "horizon": 2, "snapshots": [1, 2]}]


def invalidate(path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["invalidate", str(path), "--reason", "a wrong file", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_invalidated_cell_is_trained_again_with_the_others_of_its_training(copy: Path) -> None:
    path = small_sweep(copy)
    before = records(path)
    told = invalidate(path, "--where", "setting=lora and epoch=2")
    assert "2 cells and 1 training are invalidated" in told
    assert told.count("(of the same training)") == 1
    found = records(path)
    assert {name for name, record in found.items() if record.status is Status.FAILED} == {"lora-1", "lora-2"}
    assert (found["lora-2"].error, found["lora-2"].scores) == ("invalidated: a wrong file", {})
    _, _, kinds = run(path)
    assert kinds.count(TrainingStarted) == 1
    after = records(path)
    assert {name: record.scores for name, record in after.items()} == {
        name: record.scores for name, record in before.items()
    }
    assert {record.status for record in after.values()} == {Status.COMPLETE}


def test_invalidated_scores_are_made_again_without_training(copy: Path) -> None:
    path = small_sweep(copy)
    before = records(path)["lora-2"]
    cached = next((copy / "ledger" / "cache" / "perplexity").glob("*/perplexity.json"))
    measured = cached.stat().st_ino
    responses = make_plan(load_sweep(path)).root / "cells" / before.cell / "responses"
    old = {file.stat().st_ino for file in responses.rglob("*.gz")}
    assert "1 cell is invalidated" in invalidate(path, "--where", "setting=lora and epoch=2", "--scores")
    (remedy,) = find_remedies(make_plan(load_sweep(path)))
    assert remedy == f"massive-sft run {path} fills what 1 cell lacks, since that was invalidated"
    _, result, kinds = run(path)
    assert TrainingStarted not in kinds
    assert [record.scores for record in result.records] == [before.scores]
    assert not old & {file.stat().st_ino for file in responses.rglob("*.gz")}, "answered again"
    assert cached.stat().st_ino != measured, "measured again"


def test_invalidated_scores_whose_snapshots_are_gone_are_said_to_need_a_training(copy: Path) -> None:
    path = small_sweep(copy)
    assert "the snapshots of 1 training are gone: only `run --retrain`" in invalidate(
        path, "--where", "setting=full and epoch=2", "--scores"
    )
    plan = make_plan(load_sweep(path))
    assert [run.needs_retraining for run in plan.runs] == [True, False]
    assert estimate(plan).retrainings == 1
    assert invalidate(path, "--where", "setting=full and epoch=2", "--scores").startswith("nothing to invalidate")


def test_invalidated_again_keeps_its_reason_and_gc_removes_what_was_set_aside(copy: Path) -> None:
    path = small_sweep(copy)
    invalidate(path, "--where", "setting=lora and epoch=2")
    before = records(path)
    assert invalidate(path, "--where", "setting=lora").startswith("nothing to invalidate")
    assert records(path) == before
    aside = list((copy / "ledger").glob("*/*/invalidated"))
    assert len(aside) == 3
    done = CliRunner().invoke(app, ["gc", str(path), "--json"])
    assert {item["path"] for item in json.loads(done.stdout)["waste"]} == set(map(str, aside))
    assert not any(folder.exists() for folder in aside)
    assert records(path) == before


def test_invalidate_tries_out_changes_nothing_and_refuses_what_somebody_works_on(copy: Path) -> None:
    path = small_sweep(copy)
    before = records(path)
    assert "would be invalidated" in invalidate(path, "--where", "method=full", "--dry-run")
    ledger = Ledger.open(make_plan(load_sweep(path)).root)
    with (
        ledger.begin_attempt(str(before["full-1"].trajectory), "somebody"),
        pytest.raises(InvalidInput, match="somebody works on it"),
    ):
        invalidate(path, "--where", "method=full")
    assert records(path) == before


def test_invalidate_refuses_a_training_of_which_a_cell_without_record_is_scored(copy: Path) -> None:
    path = small_sweep(copy)
    before = records(path)
    ledger = Ledger.open(make_plan(load_sweep(path)).root)
    second, training = before["lora-2"].cell, ledger.trajectory_dir(str(before["lora-2"].trajectory)) / "training"
    for record in (ledger.root / "records").rglob(f"{second}.*"):
        record.unlink()
    with (
        ledger.lease_cell(second, "a scorer") as lease,
        pytest.raises(InvalidInput, match=rf"{second}: somebody works on it|somebody works on it.*{second}"),
    ):
        assert lease is not None
        invalidate(path, "--where", "setting=lora and epoch=1")
    assert training.is_dir()
    assert "1 cell and 1 training are invalidated" in invalidate(path, "--where", "setting=lora and epoch=1")
    assert not training.exists()


@pytest.mark.parametrize("beats", [False, True])
def test_invalidate_waits_for_an_owner_elsewhere_that_stands_still_and_refuses_one_that_lives(
    beats: bool, copy: Path
) -> None:
    path = small_sweep(copy)
    cell = records(path)["lora-2"].cell
    place = Ledger.open(make_plan(load_sweep(path)).root).cell_dir(cell) / "lease"
    process = {"host": "elsewhere", "boot": "b", "pid_namespace": "n", "pid": 1, "started": "1"}
    head = json.dumps({"name": "elsewhere:1", "token": "t", "ttl": 3600.0 if beats else 0.5, "process": process})
    number = max(int(file.name) for file in place.iterdir()) + 1

    def beat(count: int) -> None:
        (place / str(number)).write_text(f"{head}\n{count:020d} held    \n")

    over = threading.Event()

    def live() -> None:
        count = 1
        while not over.wait(0.1):
            count += 1
            beat(count)

    beat(1)
    if beats:
        living = threading.Thread(target=live)
        living.start()
        with pytest.raises(InvalidInput, match=f"somebody works on it.*{cell}"):
            invalidate(path, "--where", "setting=lora and epoch=2")
        over.set()
        living.join()
        assert records(path)["lora-2"].status is Status.COMPLETE
    else:
        assert "2 cells and 1 training are invalidated" in invalidate(path, "--where", "setting=lora and epoch=2")


def test_invalidate_takes_a_training_none_of_whose_cells_has_a_record(copy: Path) -> None:
    path = small_sweep(copy)
    ledger = Ledger.open(make_plan(load_sweep(path)).root)
    lora = records(path)["lora-2"].trajectory
    for name in ("lora-1", "lora-2"):
        for record in (ledger.root / "records").rglob(f"{records(path)[name].cell}.*"):
            record.unlink()
    assert "1 training would be invalidated" in invalidate(path, "--where", "setting=lora", "--dry-run")
    assert "1 training is invalidated; `run` makes it again" in invalidate(path, "--where", "setting=lora")
    assert not (ledger.trajectory_dir(str(lora)) / "training").exists()
    assert invalidate(path, "--where", "setting=lora").startswith("nothing to invalidate")


def test_invalidate_does_not_touch_what_got_a_new_record_since_it_was_found(copy: Path) -> None:
    plan = make_plan(load_sweep(small_sweep(copy)))
    ledger = Ledger.open(plan.root)
    found = find_invalidated(plan, ledger, with_training=True)
    ledger.write_record(found.records[0].model_copy(update={"finished": "2030-01-01T00:00:00.000Z"}))
    before = records(small_sweep(copy))
    with pytest.raises(InvalidInput, match=f"got a new record meanwhile.*{found.records[0].cell}"):
        set_aside(found, ledger, "wrong")
    assert records(small_sweep(copy)) == before
    assert all((ledger.trajectory_dir(run) / "training").is_dir() for run in found.trajectories)
