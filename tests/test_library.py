"""``import massive_sft``: a plan, a run, results as frames; light until it is used; docs/library.md runs as it stands."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from calling import call
from doc_pages import DOCS, follow
from sample_records import bonett_price, plan_of, sweep_file, write_records
from scipy import stats
from small_sweep import small_sweep

import massive_sft as ms
from massive_sft.api.run import LoggedProgress
from massive_sft.core.fingerprint import hash_file
from massive_sft.core.stop import StopSignal
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.runs import register_run
from massive_sft.ledger.store import Ledger
from massive_sft.running.execute import execute
from massive_sft.study import frames

STORED = Path(__file__).parent / "data" / "ledger_schema_1"
FULL, LORA, BASE, RETRIED = "80fab46f94768efe", "ab7f89630244a782", "4ab12e1316e797cc", "00000000000000bb"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep ``my.yaml`` after the code of docs/library.md ran in it."""
    folder = tmp_path_factory.mktemp("library")
    shutil.move(small_sweep(folder), folder / "my.yaml")
    follow(DOCS / "library.md", folder)
    return folder


def test_code_of_the_page_trains_and_scores_all(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    assert (results.cells["status"] == "COMPLETE").sum() == len(results.cells) == 5
    assert not results.ledger.corrupt


def test_run_keeps_to_the_budget_of_the_file(tmp_path: Path) -> None:
    asked = {"evaluation": {"tasks": []}, "measures": ["perplexity"]}  # whose cost is known before a run
    path = small_sweep(tmp_path, budget={"gpu_hours": 1e-9}, **asked)
    said = Said()
    results = ms.run(path, progress=said)
    assert {*zip(results.cells["method"], results.cells["status"], strict=True)} == {
        ("none", "COMPLETE"), ("full", "WAITING"), ("lora", "WAITING"),
    }  # fmt: skip
    assert "1 base row and 0 training runs take 0; left out: 2 training runs" in said.texts[0]
    assert not list((tmp_path / "ledger").glob("trajectories/*"))


def test_budget_that_pays_for_nothing_leaves_everything_waiting(tmp_path: Path) -> None:
    asked = {"evaluation": {"tasks": [], "base": False}, "measures": ["perplexity"]}
    results = ms.run(small_sweep(tmp_path, budget={"gpu_hours": 1e-9}, **asked), progress=Said())
    assert set(results.cells["status"]) == {"WAITING"}


class Said(LoggedProgress):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def test_answers_hold_what_was_asked_what_is_right_and_what_was_said(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    answers, samples = results.answers(), results.samples()
    assert len(answers) == 5 * 2 * 12
    assert answers["gold"].notna().all() and answers["prompt"].str.startswith("###Question: ").all()
    chosen, written = (answers[answers["kind"] == kind] for kind in ("loglikelihood", "generate_until"))
    assert ((chosen["answer"] == chosen["gold"]) == (chosen["value"] == 1.0)).all()
    assert ((written["answer"].str.strip() == written["gold"]) == (written["value"] == 1.0)).all()
    assert chosen["logprob"].lt(0).all() and written["finish"].isin(["stop", "eos", "length"]).all()
    values = samples.merge(answers, on=["cell", "protocol", "task", "doc", "metric"], suffixes=("", "_of_answer"))
    assert len(values) == len(answers) and (values["value"] == values["value_of_answer"]).all()


def test_answers_of_a_snapshot_are_drafts_for_those_of_the_next(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    guessed = Counter[int]()
    for cell, epoch in results.cells[["cell", "epoch"]].itertuples(index=False):
        for shard in (results.ledger.cell_dir(cell) / "responses").rglob("*.jsonl.gz"):
            header = json.loads(gzip.decompress(shard.read_bytes()).decode().splitlines()[0])
            guessed[epoch] += header["happened"].get("guessed_right", 0)
    assert guessed[0] == 0 < guessed[2]


def test_means_of_samples_are_the_scores(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    keys = ["cell", "protocol", "task", "metric", "filter"]
    means = results.samples().groupby(keys)["value"].mean()
    scores = results.scores.query("kind == 'task'").set_index(keys)["value"]
    assert scores.to_dict() == pytest.approx(means.to_dict())


def test_gains_have_intervals_of_the_questions_that_both_answered(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    primary, samples = results.gains.query("primary"), results.samples()
    assert (primary["gain_interval"] == "paired").any()
    for row in primary[primary["gain_interval"] == "paired"].to_dict("records"):
        base = results.cells.query("method == 'none'")["cell"].iloc[0]
        own, before = (
            samples[(samples["cell"] == cell) & (samples["task"] == row["task"])].set_index("doc")["value"]
            for cell in (row["cell"], base)
        )
        changes = (own - before).to_numpy()
        if set(changes) <= {-1.0, 0.0, 1.0}:
            interval = bonett_price((changes > 0).sum(), (changes < 0).sum(), len(changes))
        else:
            interval = tuple(stats.ttest_1samp(changes, 0).confidence_interval(0.95))
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(interval)


def test_some_cells_alone_are_read(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    some = results.cells.query("method == 'lora'")["cell"]
    assert set(results.samples(some)["cell"]) == set(results.answers(some)["cell"]) == set(some)
    one = some.iloc[0]
    assert set(results.samples(one)["cell"]) == set(results.answers(one[:8])["cell"]) == {one}


def test_requests_of_an_earlier_version_have_no_gold(ran: Path, tmp_path: Path) -> None:
    root = shutil.copytree(ran / "ledger", tmp_path / "ledger")
    for path in root.glob("cache/requests/*/*.gold.jsonl.gz"):
        path.unlink()
    answers = ms.load(root).answers()
    assert len(answers) == 5 * 2 * 12 and answers["gold"].isna().all()
    shutil.rmtree(root / "cache" / "requests")
    assert ms.load(root).answers().empty


def test_root_of_an_earlier_version_loads_with_hyperparameters() -> None:
    results = ms.load(STORED)
    cells = results.cells.set_index("cell")
    assert cells.loc[FULL, ["lr", "batch", "max_length", "template"]].tolist() == [
        0.001, 32, 128, "###Question: {prompt}\n###Answer: ",
    ]  # fmt: skip
    assert cells.loc[LORA, ["lr", "lora.rank"]].tolist() == [0.005, 4]
    assert cells.loc[[BASE, RETRIED], "lr"].isna().all() and pd.isna(cells.loc[FULL, "lora.rank"])
    assert results.losses.groupby("trajectory")["step"].max().tolist() == [3, 3]
    assert set(results.measures["measure"]) == {"perplexity", "layer_change", "token_length"}
    assert len(results.samples()) == 72
    assert not results.ledger.corrupt


def test_hyperparameters_that_no_cell_has_are_missing_and_no_unknown_column(tmp_path: Path) -> None:
    block = {"name": "A", "model": "small", "mixture": "one", "setting": "full", "schedule": "constant"}
    path = sweep_file(tmp_path, blocks=[block | {"horizon": 1, "snapshots": [1]}])
    write_records(plan_of(path))
    names = ["lr", "lora.rank", "optimizer.decay", "schedule.final"]
    full = ms.load(path).cells.query("method == 'full'")[names]
    assert full.notna().all().to_dict() == dict(zip(names, (True, False, False, False), strict=True))


def test_sweep_s_cells_without_a_record_are_there_with_their_hyperparameters(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    kept = {item.cell.id for item in plan_of(path).cells[:3]}
    write_records(plan_of(path), lambda record: record if record.cell in kept else None)
    results = ms.load(path)
    cells = results.cells
    assert repr(results) == f"<Results 3 COMPLETE, 15 WAITING; {tmp_path / 'ledger'}>"
    assert cells["status"].value_counts().to_dict() == {"COMPLETE": 3, "WAITING": 15}
    assert cells.loc[cells["method"] != "none", "lr"].notna().all()
    assert cells.loc[cells["status"] == "WAITING", "last_loss"].isna().all()
    assert dict(cells.dtypes.astype(str).items()).items() >= {
        (name if name != "data" else "mixture", kind) for name, kind in frames.CELLS.items()
    }
    assert set(ms.load(tmp_path / "ledger").cells["cell"]) == kept


def test_sweep_shows_the_scores_that_it_asks_for_alone(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    write_records(plan_of(path))
    fewer = sweep_file(tmp_path, evaluation={"tasks": [{"name": "quiz", "shots": 0}]})
    assert set(ms.load(fewer).scores["benchmark"]) == {"quiz-0shot"}
    assert set(ms.load(tmp_path / "ledger").scores["benchmark"]) == {"quiz-0shot", "prose-0shot"}


def test_every_benchmark_of_every_cell_has_a_row_with_its_score_or_why_there_is_none(tmp_path: Path) -> None:
    write_records(plan_of(sweep_file(tmp_path, evaluation={"tasks": [{"name": "quiz", "shots": 0}]})), late_or_diverged)
    asked = {"tasks": [{"name": "quiz", "shots": 0}, {"name": "prose", "shots": 0}]}
    results = ms.load(sweep_file(tmp_path, evaluation=asked))
    scores = results.scores.query("primary")
    assert len(scores) == len(results.cells) * 2 and not scores.duplicated(["cell", "column"]).any()
    table = scores.pivot(index="cell", columns="column", values="value").reindex(results.cells["cell"])
    status = results.cells.set_index("cell")["status"]
    assert table["prose-0shot"].isna().all()
    assert (table["quiz-0shot"].notna() == (status == "PARTIAL")).all()
    assert set(status) == {"PARTIAL", "DIVERGED", "WAITING"}
    missing = scores.set_index(["cell", "column"])["missing"]
    assert {(status[cell], why) for (cell, _), why in missing.dropna().items()} == {
        ("PARTIAL", "not scored yet"), ("WAITING", "not scored yet"), ("DIVERGED", "DIVERGED: loss is not finite"),
    }  # fmt: skip
    gains = results.primary_gains
    trained = results.cells.query("method != 'none'")
    assert len(gains) == len(trained) * 2 == len(results.gains.query("primary"))
    assert (gains["gain"].notna() == ((gains["column"] == "quiz-0shot") & (gains["status"] == "PARTIAL"))).all()
    assert set(gains.loc[gains["gain"].isna(), "why"]) == {"no score"}
    assert set(results.best("quiz")["value"].isna()) == {False}


def test_gains_of_some_cells_are_over_the_base_model_that_where_leaves_out(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    write_records(plan_of(path))
    whole, some = ms.load(path), ms.load(path, where="method=lora and model=small")
    assert set(some.cells["method"]) == set(some.scores["method"]) == {"lora"}
    expected = whole.gains.query("method == 'lora' and model == 'small'").reset_index(drop=True)
    assert expected["gain"].notna().any()
    pd.testing.assert_frame_equal(some.gains.reset_index(drop=True), expected)


def late_or_diverged(record: Record) -> Record | None:
    if record.coordinates["setting"] != "lora":
        return record
    diverged = {"status": Status.DIVERGED, "error": "loss is not finite", "scores": {}}
    return record.model_copy(update=diverged) if record.coordinates["epoch"] == 2 else None


def test_gains_of_the_library_are_those_of_the_report(tmp_path: Path) -> None:
    from massive_sft.report.report_data import read_report_data

    plan = plan_of(sweep_file(tmp_path))
    write_records(plan)
    results = ms.load(tmp_path / "sweep.yaml")
    expected = read_report_data(plan, results).gains.drop(columns=["mixture_label", "setting_label"])
    pd.testing.assert_frame_equal(results.primary_gains, expected.rename(columns={"data": "mixture"}))
    pd.testing.assert_frame_equal(
        results.gains.query("primary").reset_index(drop=True), results.primary_gains.reset_index(drop=True)
    )


def test_damaged_file_is_noted_and_adds_no_rows(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    plan = plan_of(path)
    ledger = write_records(plan)
    damaged = next(ledger.root.glob("trajectories/*/training/attempt-1/losses.jsonl"))
    damaged.write_text("{}\n")
    results = ms.load(path)
    assert results.losses["trajectory"].nunique() == len(plan.runs) - 1
    assert list(results.ledger.corrupt) == [damaged]


def test_run_returns_results_of_overlays_that_can_be_gone_through_once(tmp_path: Path) -> None:
    path, overlay = small_sweep(tmp_path, evaluation={"tasks": []}, measures=[]), tmp_path / "overlay.yml"
    overlay.write_text("settings: {lora: {lr: 4.0e-3}}\nbudget: {gpu_hours: 1.0e-9}\n")
    results = ms.run(path, tmp_path.glob("*.yml"), progress=Said())
    assert set(results.cells.query("method == 'lora'")["lr"]) == {4e-3}
    assert set(ms.load(path, overlay).cells["cell"]) == set(results.cells["cell"])


def test_plan_takes_where_and_overlays(tmp_path: Path) -> None:
    path, overlay = sweep_file(tmp_path), tmp_path / "overlay.yaml"
    overlay.write_text("settings: {lora: {lr: 5.0e-3}}\n")
    chosen = ms.plan(str(path), [overlay], where="method=lora and model=small")
    assert {run.trajectory.recipe.setting.lr for run in chosen.runs} == {5e-3}
    assert {cell.cell.coordinates.method for cell in chosen.cells} == {"lora"}
    assert {run.trajectory.recipe.setting.lr for run in ms.plan(path, str(overlay)).runs} == {1e-5, 5e-3}
    with pytest.raises(ms.InvalidInput, match="unknown key, got 'colour'"):
        ms.plan(path, where="colour=red")


def test_load_of_nothing_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ms.InvalidInput, match="is no ledger"):
        ms.load(tmp_path)
    with pytest.raises(ms.InvalidInput, match="holds nothing yet: run the sweep first"):
        ms.load(sweep_file(tmp_path))


def test_import_is_light_and_every_name_is_there() -> None:
    heavy = ["torch", "ray", "lm_eval", "transformers", "mlflow", "pandas", "pydantic", "typer"]
    code = (
        "import sys, massive_sft as ms; assert ms.__version__ and set(ms.__all__) <= set(dir(ms));"
        f"print([name for name in {heavy} if name in sys.modules]); ms.plan, ms.estimate, ms.Plan, ms.run;"
        f"print([name for name in {heavy[:-2]} if name in sys.modules]); [getattr(ms, name) for name in ms.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ms.nothing  # noqa: B018 - asked for on purpose


def test_cells_recorded_by_hand_have_no_hyperparameters(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    write_records(plan)
    assert ms.load(plan.root).cells[["lr", "lora.rank"]].isna().all().all()


def test_answers_stand_side_by_side(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ms.load(ran / "my.yaml").cells.set_index("method")["cell"]
    base, tuned = cells["none"], cells["lora"].iloc[-1]
    code, text = call("answers", base, tuned, "--sweep", ran / "my.yaml", "--benchmark", "facts_mc", "-n", 3)
    assert (code, "3 questions, 9 more (-n)" in text) == (0, True)
    assert text.count("###Question: ") == 3 and text.count(f"{base} llama (base)") == text.count(tuned) == 3
    code, text = call("answers", base, tuned, "--sweep", ran / "my.yaml", "--json")
    rows = json.loads(text)
    assert (code, len(rows)) == (0, 24)
    changed = json.loads(call("answers", base, tuned, "--sweep", ran / "my.yaml", "--changed", "--json")[1])
    assert changed == [row for row in rows if len({said["value"] for said in row["answers"]}) > 1]
    monkeypatch.chdir(ran)  # where the sweep is found
    one = json.loads(call("answers", base[:8], "--json")[1])
    assert [row["answers"][0] for row in one] == [row["answers"][0] for row in rows]


def test_answers_of_what_is_not_there_are_sentences(ran: Path) -> None:
    base = ms.load(ran / "my.yaml").cells.set_index("method")["cell"]["none"]
    _, text = call("answers", base, "--sweep", ran / "my.yaml", "--changed")
    assert "--changed: compares two cells" in text
    _, text = call("answers", base, "--sweep", ran / "my.yaml", "--benchmark", "facts")
    assert "is none that these cells answered, got 'facts'" in text


def test_run_ends_with_a_table_of_what_it_was_asked_for(ran: Path, tmp_path: Path) -> None:
    root = shutil.copytree(ran / "ledger", tmp_path / "ledger", ignore=shutil.ignore_patterns("mlflow*"))
    cell = ms.load(root).cells.query("method == 'lora' and epoch == 2")["cell"].iloc[0]
    for path in root.glob(f"records/*/{cell}.*"):
        path.unlink()
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps({"storage": {"root": str(root)}}))
    code, text = call("run", ran / "my.yaml", "--overlay", overlay, "--inline", "--where", "method=lora")
    assert code == 0, text
    names, *table = text.splitlines()[-6:]
    assert names.split() == ["facts_mc-0shot", "facts_gen-0shot"]
    assert table[0].split() == ["cell", "what", "acc", "%", "exact_match", "%"]
    assert [line.split()[0] for line in table[1:3]] == list(ms.load(ran / "my.yaml", where="method=lora").cells["cell"])
    assert all("(" in line for line in table[1:3]) and table[-1].startswith("2 of the sweep's 5 cells: 2 COMPLETE; ")


def test_run_ends_with_the_gains_that_its_report_was_made_of(ran: Path, tmp_path: Path) -> None:
    root = shutil.copytree(ran / "ledger", tmp_path / "ledger", ignore=shutil.ignore_patterns("mlflow*"))
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps({"storage": {"root": str(root)}}))
    plan = ms.plan(ran / "my.yaml", [overlay])
    with register_run(Ledger.open(root).sweeps, "small", "test") as run:
        ended = execute(plan, plan, run, lambda *_: None, LoggedProgress(), StopSignal())
    shutil.rmtree(root / "cells")  # no question's value can be read again
    assert ended.results is not None
    assert (ended.results.primary_gains["gain_interval"] == "paired").any()


def test_losses_are_of_single_steps_or_said_to_be_means(ran: Path) -> None:
    results = ms.load(ran / "my.yaml")
    curves = results.losses.set_index(["trajectory", "step"])["loss"]
    for row in results.cells.query("method != 'none'").to_dict("records"):
        assert row["first_loss"] == curves[row["trajectory"], 1]
        assert row["last_loss"] == curves[row["trajectory"], row["steps"]]
        training = results.records[row["cell"]].training
        assert (row["first_loss_mean"], row["last_loss_mean"]) == (training["first_loss"], training["last_loss"])
    last = results.cells.query("method == 'full' and epoch == 2").iloc[0]
    _, text = call("show", last["cell"], "--sweep", ran / "my.yaml")
    said = " ".join(text.split())
    assert f"loss at step 1 {last['first_loss']:.4g}, loss at step {last['steps']} {last['last_loss']:.4g}" in said
    steps = min(5, last["steps"])
    assert ("mean loss " if steps == last["steps"] else f"mean loss of the first {steps} steps ") in said


def test_answers_say_what_the_filter_took(ran: Path, tmp_path: Path) -> None:
    shutil.copytree(ran, tmp_path / "filtered", ignore=shutil.ignore_patterns("mlflow*"))
    results = ms.load(tmp_path / "filtered" / "my.yaml")
    cell = results.cells["cell"].iloc[0]
    assert len(results.answers([cell[:12]])) == len(results.answers([cell])) > 0
    with pytest.raises(ms.InvalidInput, match="is the beginning of no cell's id"):
        results.samples(["zzz"])
    written = results.answers([cell]).query("kind == 'generate_until'")
    assert (written["extracted"] == written["answer"]).all()
    (file,) = (
        results.ledger.cell_dir(cell) / "scores" / f"{protocol}.parquet" for protocol in written["protocol"].unique()
    )
    rows = pd.read_parquet(file)
    rows.assign(extracted=["[invalid]", None, *["The"] * (len(rows) - 2)]).to_parquet(file)
    record = results.records[cell]
    files = record.files | {file.relative_to(results.ledger.root).as_posix(): hash_file(file)}
    results.ledger.write_record(record.model_copy(update={"files": files}))
    again = ms.load(tmp_path / "filtered" / "my.yaml").answers([cell]).query("kind == 'generate_until'")
    unchanged = again["answer"].iloc[1]  # which the filter left as it is
    assert again["extracted"].tolist() == ["[invalid]", unchanged, *["The"] * (len(rows) - 2)]
    _, text = call("answers", cell, "--sweep", tmp_path / "filtered" / "my.yaml", "--benchmark", "facts_gen")
    assert "→ [invalid]" in text and "→ The" in text
    pd.read_parquet(file).drop(columns="extracted").to_parquet(file)
    record = record.model_copy(
        update={"files": files | {file.relative_to(results.ledger.root).as_posix(): hash_file(file)}}
    )
    results.ledger.write_record(record)
    before = ms.load(tmp_path / "filtered" / "my.yaml").answers([cell])
    assert before["extracted"].isna().all() and before["value"].notna().all()
