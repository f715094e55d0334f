"""The verbs about results, over one finished ledger whose model's name looks like markup."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call
from commands import command as command_in_process
from commands import end, run_command, start_session
from mlflow import MlflowClient
from peft import PeftModel
from processes import adopt_orphans, descendants, free_port
from rich.console import Console
from ruamel.yaml import YAML
from small_sweep import small_sweep
from transformers import AutoModelForCausalLM, AutoTokenizer

import massive_sft as ms
from massive_sft.cli import export, logs
from massive_sft.cli.card import TrainedPrompt
from massive_sft.cli.machine_checks import Level, check_packages, pinned_versions
from massive_sft.cli.retry import count_diverged, retry_view, select_failed
from massive_sft.ledger.record import Status
from massive_sft.ledger.run_requirements import publish_requirements
from massive_sft.ledger.runs import register_run
from massive_sft.ledger.store import Ledger
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.planning.selection import parse_where
from massive_sft.running.inline import run_inline
from massive_sft.running.outcome import remove_snapshot, snapshot_folder
from massive_sft.running.recorder import now
from massive_sft.running.trial import make_record_writer
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Model
from massive_sft.tiny import WEIGHTS
from massive_sft.tracking.tracker import runs_page

NAME = "ll[/red]ama|*"


def printed(view: Any) -> str:
    console = Console(width=220, markup=True)
    with console.capture() as text:
        console.print(view)
    return text.get()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run each of full tuning and LoRA to epoch 2, scored; the full snapshot of epoch 1 is not kept."""
    folder = tmp_path_factory.mktemp("verbs")
    model = {NAME: {"path": str(folder / "world" / "models" / "tiny-llama")}}
    storage = {"root": str(folder / "ledger"), "keep_snapshots": {"full": "last", "lora": "all"}}
    path = small_sweep(folder, models=model, storage=storage, measures=["token_length"])
    run_inline(make_plan(load_sweep(path)), lambda event: None)
    return path


@pytest.fixture
def copied(sweep: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the ledger and writes an overlay that points there, with more changes."""

    def make(**changes: Any) -> Path:
        shutil.copytree(sweep.parent / "ledger", tmp_path / "ledger", dirs_exist_ok=True)
        changes["storage"] = {"root": str(tmp_path / "ledger"), **changes.get("storage", {})}
        with (tmp_path / "overlay.yaml").open("w") as text:
            YAML(typ="safe").dump(changes, text)
        return tmp_path / "overlay.yaml"

    return make


def plan_of(sweep: Path, *overlays: Path) -> Plan:
    return make_plan(load_sweep(sweep, overlays))


def cell_of(plan: Plan, method: str, epoch: int) -> str:
    return next(
        c.cell.id for c in plan.cells if (c.cell.coordinates.method, c.cell.coordinates.epoch) == (method, epoch)
    )


@pytest.fixture
def full(sweep: Path) -> str:
    return cell_of(plan_of(sweep), "full", 2)


@pytest.fixture
def lora(sweep: Path) -> str:
    return cell_of(plan_of(sweep), "lora", 2)


def steps(folder: Path, losses: list[Any], rest: str = "") -> None:
    """Write a loss curve of two steps an epoch, as the training loop does."""
    facts = {"lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "trainable_tokens": 5, "seconds": 0.5}
    lines = [{"step": i + 1, "epoch": i // 2 + 1, "loss": loss, **facts} for i, loss in enumerate(losses)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


# logs


def test_logs_of_a_finished_cell_show_its_curve_and_where_the_files_are(sweep: Path, full: str) -> None:
    code, text = call("logs", full[:12], "--sweep", sweep)
    assert code == 0
    assert NAME in text and "COMPLETE" in text and "attempt 1: published" in text
    assert str(sweep.parent / "ledger" / "cells" / full) in text
    rows = json.loads(call("logs", full, "--sweep", sweep, "--json")[1])["epochs"]
    assert [(row["epoch"], row["steps"], row["not_finite"]) for row in rows] == [(1, 3, 0), (2, 3, 0)]
    assert rows[1]["min"] <= rows[1]["last"] < rows[0]["first"]


def test_logs_of_a_running_cell_show_the_steps_written_so_far(sweep: Path, copied: Callable[..., Path]) -> None:
    overlay = copied(settings={"defaults": {"seed": 1}})
    plan = plan_of(sweep, overlay)
    ledger, cell = Ledger.open(plan.root), cell_of(plan, "full", 2)
    with ledger.begin_attempt(plan.runs[0].trajectory.id, "test") as attempt:
        steps(attempt.folder, [4.0, 3.0, "nan", 2.0], rest='{"step": 5, "ep')
        _, text = call("logs", cell, "--sweep", sweep, "--overlay", overlay)
        assert "WAITING" in text and "attempt 1: waits for its workers" in text
        attempt.take_up()
        _, shown = call("status", sweep, "--overlay", overlay)
        assert "training: step 4 of 6, loss 2.000" in " ".join(shown.split())
        _, text = call("logs", cell, "--sweep", sweep, "--overlay", overlay)
    assert "RUNNING" in text and "attempt 1: at work" in text
    assert "up to step 4" in text
    assert "█" in text and "!" in text
    assert "not finite" in text


def test_logs_of_a_failed_cell_show_the_traceback_of_every_attempt(sweep: Path, copied: Callable[..., Path]) -> None:
    overlay = copied(settings={"defaults": {"seed": 1}})
    plan = plan_of(sweep, overlay)
    recorder, run = make_record_writer(plan), plan.runs[0]
    for number in (1, 2):
        with recorder.ledger.begin_attempt(run.trajectory.id, "test") as attempt:
            (attempt.folder / "traceback.txt").write_text(f"Traceback [/bold] of attempt {number}")
    recorder.failed(run.cells[0], 2, "OSError: [/disk] is full")
    (recorder.ledger.cell_dir(run.cells[0].cell.id) / "traceback.txt").write_text("Traceback of the cell")
    _, text = call("logs", run.cells[0].cell.id, "--sweep", sweep, "--overlay", overlay)
    for part in ("FAILED", "OSError: [/disk] is full", "of attempt 1", "[/bold] of attempt 2", "Traceback of the cell"):
        assert part in text
    assert "attempt 1: failed" in text and "attempt 2: failed" in text
    assert "no optimizer step was taken yet" in text


def test_logs_say_of_an_attempt_that_was_killed_that_it_is_not_finished(
    sweep: Path, copied: Callable[..., Path]
) -> None:
    overlay = copied(settings={"defaults": {"seed": 1}})
    plan = plan_of(sweep, overlay)
    with Ledger.open(plan.root).begin_attempt(plan.runs[0].trajectory.id, "test") as attempt:
        steps(attempt.folder, [4.0, 3.0])
    shown = json.loads(call("logs", cell_of(plan, "full", 2), "--sweep", sweep, "--overlay", overlay, "--json")[1])[
        "attempts"
    ]
    assert [(attempt["state"], attempt["traceback"]) for attempt in shown] == [("not finished", None)]


def test_logs_of_a_cell_show_the_curve_of_the_attempt_that_its_record_names(
    sweep: Path, copied: Callable[..., Path]
) -> None:
    """The first attempt ended after epoch 1, the third went on to epoch 2."""
    overlay = copied()
    plan = plan_of(sweep, overlay)
    ledger, run = Ledger.open(plan.root), plan.runs[0]
    training = ledger.trajectory_dir(run.trajectory.id) / "training"
    assert (training / "epoch-1").is_dir()
    (training / "attempt-1").rename(training / "attempt-3")
    first, second = (cell_of(plan, run.trajectory.recipe.setting.method, epoch) for epoch in (1, 2))
    later = ledger.read_record(second)
    assert later is not None
    files = {name.replace("attempt-1/", "attempt-3/"): checksum for name, checksum in later.files.items()}
    ledger.write_record(
        later.model_copy(update={"attempt": 3, "files": files, "training": {**later.training, "seconds": 9.0}})
    )
    for cell, number in ((first, 1), (second, 3)):
        _, text = call("logs", cell, "--sweep", sweep, "--overlay", overlay)
        assert f"(attempt {number})" in text and "attempt 3: published" in text
        assert (
            "attempt 1: not finished, but epoch 1 counts" in text
            or "attempt 1" not in text.partition("(attempt")[2][3:]
        )


def test_logs_of_an_unknown_cell_name_the_nearest(sweep: Path, full: str) -> None:
    wrong = full[:6] + "zz"
    code, text = call("logs", wrong, "--sweep", sweep)
    assert (code, "cell: is the beginning of no cell's id (" in text, f"got '{wrong}'" in text) == (2, True, True)
    assert full in text
    assert call("logs", "", "--sweep", sweep)[0] == 2


def test_sparkline_is_as_long_as_few_values_and_never_longer_than_its_width() -> None:
    assert logs.sparkline([3, 2, 1, 0]) == "█▆▃▁"
    assert logs.sparkline([1, 1]) == "▁▁"
    assert logs.sparkline([]) == ""
    assert len(logs.sparkline(list(range(1000)), width=7)) == 7
    assert logs.sparkline([1, float("inf"), 0]) == "█!▁"


# diff


def test_diff_lists_only_what_differs(sweep: Path, full: str, lora: str) -> None:
    code, text = call("diff", full, lora, "--sweep", sweep)
    assert code == 0
    assert "setting.lora.rank" in text and "setting.lr" in text
    assert "setting.batch" not in text
    assert "provenance: no difference" in text and "layout: no difference" in text
    same = json.loads(call("diff", full, full, "--sweep", sweep, "--json")[1])
    assert not any(same["differs"].values())
    assert {row["difference"] for row in same["scores"]} == {0.0}
    assert re.search(r"\+0\.0 \[-[\d.]+, \+[\d.]+\]", call("diff", full, full, "--sweep", sweep)[1]), "as best has it"


def test_diff_pairs_the_scores_sample_by_sample(sweep: Path, full: str, lora: str) -> None:
    rows = json.loads(call("diff", full, lora, "--sweep", sweep, "--json")[1])["scores"]
    assert [row["benchmark"] for row in rows] == ["facts_gen-0shot", "facts_mc-0shot"]
    for row in rows:
        assert row["same_protocol"] and row["intervals_overlap"] is not None
        assert row["paired"]["n"] == 12 and row["paired"]["unpaired"] == 0
        assert row["paired"]["mean"] == pytest.approx(row["second"]["value"] - row["first"]["value"])
        assert row["paired"]["mcnemar"]["p"] <= 1


def test_diff_has_the_interval_that_the_report_has(sweep: Path, full: str) -> None:
    gains = ms.load(sweep).gains.query("cell == @full and gain_interval == 'paired'")
    base = gains["base_cell"].iloc[0]
    rows = json.loads(call("diff", base, full, "--sweep", sweep, "--json")[1])["scores"]
    told = {row["task"]: row["paired"]["interval"] for row in rows}
    for _, gain in gains.iterrows():
        assert told[gain["task"]] == pytest.approx([gain["gain_low"], gain["gain_high"]])


def test_diff_under_other_protocols_says_so_and_pairs_nothing(
    sweep: Path, copied: Callable[..., Path], full: str, lora: str
) -> None:
    overlay = copied()
    ledger = Ledger.open(plan_of(sweep, overlay).root)
    record = ledger.read_record(lora)
    assert record is not None
    renamed = {f"{index:016x}": item for index, item in enumerate(record.scores.values())}
    ledger.write_record(record.model_copy(update={"scores": renamed}))
    rows = json.loads(call("diff", full, lora, "--sweep", sweep, "--overlay", overlay, "--json")[1])["scores"]
    assert [(row["same_protocol"], row["paired"]) for row in rows] == [(False, None)] * 2
    assert all(row["difference"] is not None for row in rows)
    assert "under different protocols" in call("diff", full, lora, "--sweep", sweep, "--overlay", overlay)[1]


def test_diff_lists_the_version_of_a_measure_that_both_have_and_no_other(
    sweep: Path, copied: Callable[..., Path], full: str, lora: str
) -> None:
    overlay = copied()
    base = plan_of(sweep, overlay).base[0].cell.id

    def measures(first: str) -> dict[str, Any]:
        _, text = call("diff", first, full, "--sweep", sweep, "--overlay", overlay, "--json")
        found: dict[str, Any] = json.loads(text)["differs"]["measures"]
        return found

    one_sided = measures(base)
    assert one_sided and all(name.startswith("token_length.") for name in one_sided)
    assert "token_length.schema" not in one_sided
    ledger = Ledger.open(plan_of(sweep, overlay).root)
    record = ledger.read_record(lora)
    assert record is not None
    older = record.measures["token_length"] | {"schema": 0}
    ledger.write_record(record.model_copy(update={"measures": {"token_length": older}}))
    assert measures(lora)["token_length.schema"]["first"] == 0


def test_diff_of_changed_samples_is_refused(sweep: Path, copied: Callable[..., Path], full: str, lora: str) -> None:
    overlay = copied()
    path = next((plan_of(sweep, overlay).root / "cells" / lora / "scores").glob("*.parquet"))
    path.write_bytes(path.read_bytes() + b" ")
    code, text = call("diff", full, lora, "--sweep", sweep, "--overlay", overlay)
    assert (code, f"{path}: does not match the checksum in the record" in text) == (1, True)


def test_diff_of_a_cell_without_record_compares_the_content(
    sweep: Path, copied: Callable[..., Path], full: str
) -> None:
    overlay = copied(settings={"defaults": {"seed": 1}})
    waiting = cell_of(plan_of(sweep, overlay), "full", 2)
    _, text = call("diff", full, waiting, "--sweep", sweep, "--overlay", overlay)
    assert f"no record yet: {waiting}" in text
    assert "seed" in text


# export


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(1, 9)[None]).logits


def test_exported_models_load_and_answer_as_in_the_ledger(sweep: Path, full: str, lora: str, tmp_path: Path) -> None:
    plan = plan_of(sweep)
    base = plan.base[0].cell.model
    ledger = Ledger.open(plan.root)
    for cell, run, options in ((full, plan.runs[0], []), (lora, plan.runs[1], []), (lora, plan.runs[1], ["--merge"])):
        folder = tmp_path / f"{cell}{len(options)}"
        code, text = call("export", cell, folder, "--sweep", sweep, *options)
        assert (code, str(folder) in text) == (0, True)
        if cell == lora and not options:
            assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base.path
            loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path, dtype="float32"), folder)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
            assert not isinstance(loaded, PeftModel)
        snapshot = snapshot_folder(ledger, run.trajectory.id, 2)
        assert torch.allclose(logits(loaded), logits(load_for_scoring(base, snapshot, "fp32")), atol=1e-4)
        ids = AutoTokenizer.from_pretrained(folder)("What is 2 + 2?")["input_ids"]
        assert ids == load_tokenizer(base)("What is 2 + 2?")["input_ids"]
        assert not [path for path in folder.iterdir() if path.name in ("manifest.json", "snapshot.json")]


def test_model_card_tells_base_data_setting_scores_and_cell(sweep: Path, lora: str, tmp_path: Path) -> None:
    call("export", lora, tmp_path / "out", "--sweep", sweep)
    text = (tmp_path / "out" / "README.md").read_text()
    head = YAML(typ="safe").load(text.split("---\n")[1])
    assert head["library_name"] == "peft"
    for part in (lora, r"ll\[/red\]ama\|\*", "tiny-llama", "facts.jsonl", "setting.lora.rank | 4", "PeftModel.from_pretrained", "git.commit"):  # fmt: skip
        assert part in text
    assert 'tiny-llama", dtype="float32")\n' in text, "as it was trained, whatever the base's own precision"
    assert "| facts\\_gen-0shot | facts\\_gen | exact\\_match % | 0" in text
    assert "A chat template is not in\nthis folder" in text
    assert "\nScored in fp32 by engine `plain`, template: training.\n" in text


def test_example_of_the_model_card_asks_with_the_prompt_of_the_training(
    sweep: Path,
    full: str,
    lora: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # the folder above the exported ones
    for cell in (full, lora):
        call("export", cell, Path(f"out {cell}"), "--sweep", sweep)
        card = (tmp_path / f"out {cell}" / "README.md").read_text()
        assert "```text\n###Question: {prompt}\n###Answer: \n```" in card
        names: dict[str, Any] = {}
        exec(card.split("```python\n")[1].split("```")[0], names)
        assert names["tokenizer"].decode(names["inputs"].input_ids[0], skip_special_tokens=True) == (
            "###Question: What is the capital of France?\n###Answer:"
        )
        answer = names["output"][0, names["inputs"].input_ids.shape[1] :]
        shown = names["tokenizer"].decode(answer, skip_special_tokens=True).strip()
        assert capsys.readouterr().out == f"{shown}\n"


def test_chat_template_goes_along_only_where_training_used_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(WEIGHTS / "tiny-llama", base)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    for name, trained in (("text", {"prompt": "Q: {prompt}\nA: "}), ("chat", {"chat": "0" * 16})):
        prompt = export.save_tokenizer(Model(path=str(base)), trained, tmp_path / name)
        assert prompt == TrainedPrompt(trained.get("prompt"), "</s>")
        assert bool(AutoTokenizer.from_pretrained(tmp_path / name).chat_template) == (name == "chat")


@pytest.mark.parametrize(
    ("given", "meant"),
    [(".", "empty"), ("link", "empty"), ("empty", "empty"), ("link to nothing", "new"), ("empty/../new", "new")],
)
def test_export_fills_the_folder_that_is_meant(
    sweep: Path, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "link to nothing").symlink_to("new")
    monkeypatch.chdir(tmp_path / "empty" if given == "." else tmp_path)
    before = os.stat(".").st_ino
    code, text = call("export", lora, given, "--sweep", sweep)
    assert code == 0, text
    files = {path.name for path in (tmp_path / meant).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files
    assert os.stat(".").st_ino == before, "the shell's folder is the one that is seen"
    assert (tmp_path / meant).stat().st_mode & 0o777 == (0o700 if meant == "empty" else 0o755)
    assert not list(tmp_path.rglob("*.partial"))


def test_export_into_a_folder_of_another_file_system(sweep: Path, lora: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "link").symlink_to(elsewhere)
        assert call("export", lora, tmp_path / "link", "--sweep", sweep)[0] == 0
        assert "README.md" in os.listdir(elsewhere)


def test_export_that_cannot_be_put_into_its_folder_leaves_it_empty(
    sweep: Path, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def moves(source: Path, target: Path, move: Callable[..., None] = os.rename) -> None:
        if target.name == "README.md":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        move(source, target)

    monkeypatch.setattr(os, "rename", moves)
    code, text = call("export", lora, tmp_path / "out", "--sweep", sweep)
    assert (code, "folder: cannot be written (Permission denied)" in text) == (2, True)
    assert list((tmp_path / "out").iterdir()) == []


def test_export_refuses_every_wrong_thing_at_once(sweep: Path, tmp_path: Path) -> None:
    plan = plan_of(sweep)
    (tmp_path / "file").write_text("")
    code, text = call("export", cell_of(plan, "full", 1), tmp_path, "--sweep", sweep, "--merge")
    assert code == 2
    assert "folder: must not exist, or be an empty folder, but has file" in text and "--merge: needs an adapter" in text
    there = call("export", cell_of(plan, "full", 2), tmp_path / "new" / "..", "--sweep", sweep)
    assert there[0] == 2 and "folder: must not exist, or be an empty folder, but has file" in there[1]
    assert "is a base model" in call("export", plan.base[0].cell.id, tmp_path / "new", "--sweep", sweep)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_export_of_a_removed_snapshot_says_how_to_get_it_back(sweep: Path, tmp_path: Path) -> None:
    code, text = call("export", cell_of(plan_of(sweep), "full", 1), tmp_path / "new", "--sweep", sweep)
    assert code == 2
    assert "was removed once it was scored" in text and "--retrain" in text and "keep_snapshots: {full: all}" in text


def test_export_of_a_damaged_snapshot_is_refused(
    sweep: Path, copied: Callable[..., Path], full: str, tmp_path: Path
) -> None:
    overlay = copied()
    plan = plan_of(sweep, overlay)
    path = snapshot_folder(Ledger.open(plan.root), plan.runs[0].trajectory.id, 2) / "config.json"
    path.write_text(path.read_text() + " ")
    code, text = call("export", full, tmp_path / "new", "--sweep", sweep, "--overlay", overlay)
    assert (code, "differs from its manifest in config.json" in text) == (1, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["--merge"]])
def test_export_of_a_snapshot_that_is_removed_meanwhile_says_so(
    arguments: list[str],
    sweep: Path,
    copied: Callable[..., Path],
    lora: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overlay = copied()
    plan = plan_of(sweep, overlay)
    ledger, run = Ledger.open(plan.root), next(run for run in plan.runs if lora in [c.cell.id for c in run.cells])
    make_folder = tempfile.mkdtemp

    def removing(**options: Any) -> str:
        remove_snapshot(ledger, run.trajectory.id, 2)
        return make_folder(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", removing)  # which is done once the snapshot was found and verified
    code, text = call("export", lora, tmp_path / "new", "--sweep", sweep, "--overlay", overlay, *arguments)
    assert (code, "has no snapshot any more" in text) == (2, True), text
    assert not list(tmp_path.glob("*new*"))


# gc


def everything(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if "lease" not in path.parts}


@pytest.fixture
def littered(sweep: Path, copied: Callable[..., Path]) -> Iterator[tuple[Path, Plan, set[str]]]:
    """A copy of the ledger where LoRA's snapshots are not kept either, with leftovers; and what is litter."""
    overlay = copied(storage={"keep_snapshots": {"full": "last", "lora": "none"}})
    plan = plan_of(sweep, overlay)
    home = plan.root / "trajectories" / plan.runs[0].trajectory.id
    old = time.time() - 7200
    litter = []
    for path in (home / "attempts/1/snapshots/epoch-2/x", home / "snapshots/.epoch-1.removed.ab/epoch-1/x"):
        path.parent.mkdir(parents=True)
        path.write_text("12345")
        litter.append(path)
    for path in (plan.root / "cache/tokens/.a.json.1.tmp", plan.root / "cells" / plan.cells[0].cell.id / ".r.2.tmp"):
        path.write_text("12345")
        os.utime(path, (old, old))
        litter.append(path)
    (plan.root / "cache/tokens/.fresh.json.1.tmp").write_text("being written")
    yield overlay, plan, {path.relative_to(plan.root).as_posix() for path in litter}


def test_gc_removes_leftovers_and_snapshots_beyond_the_policy_and_nothing_else(
    sweep: Path, littered: tuple[Path, Plan, set[str]]
) -> None:
    overlay, plan, litter = littered
    before = everything(plan.root)
    code, text = call("gc", sweep, "--overlay", overlay, "--dry-run")
    assert (code, "6 items" in text, "would go" in text) == (0, True, True)
    assert everything(plan.root) == before
    shown = json.loads(call("gc", sweep, "--overlay", overlay, "--json")[1])
    assert shown["removed"] and len(shown["waste"]) == 6 and shown["bytes"] > 100_000
    gone = before - everything(plan.root)
    assert litter <= gone
    adapters = f"trajectories/{plan.runs[1].trajectory.id}/snapshots/epoch-"
    extra = {path for path in gone - litter if "/attempts/1/" not in path and ".removed." not in path}
    assert extra and all(path.startswith(adapters) for path in extra)
    assert "nothing to remove" in call("gc", sweep, "--overlay", overlay)[1]
    assert all(cell.is_done for cell in plan_of(sweep, overlay).cells)


def test_gc_leaves_alone_what_somebody_works_on(sweep: Path, littered: tuple[Path, Plan, set[str]]) -> None:
    overlay, plan, _ = littered
    ledger = Ledger.open(plan.root)
    before = everything(plan.root)
    with (
        ledger.begin_attempt(plan.runs[0].trajectory.id, "test"),
        ledger.begin_attempt(plan.runs[1].trajectory.id, "test"),
    ):
        before = everything(plan.root)
        shown = json.loads(call("gc", sweep, "--overlay", overlay, "--caches", "--json")[1])
    assert len(shown["waste"]) == 2  # the old temporary files of a cell and of a cache
    assert len(shown["kept"]) == 4
    assert all("somebody works on" in line for line in shown["kept"])
    assert len(before - everything(plan.root)) == 2
    with ledger.lease_cell(plan.runs[1].cells[0].cell.id, "test"):
        shown = json.loads(call("gc", sweep, "--overlay", overlay, "--json")[1])
    assert [line for line in shown["kept"] if "snapshots/epoch-1" in line] == shown["kept"] != []


class _ListedThenGone(list[os.DirEntry[str]]):
    """What ``os.scandir`` returns of a folder whose files and folders go right after it was read."""

    def __enter__(self) -> _ListedThenGone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> os.DirEntry[str]:
        if not self:
            raise StopIteration
        return self.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("place", ["trajectories/{}/attempts/2/state", "trajectories/{}", "cache/perplexity"])
def test_gc_passes_over_what_goes_while_it_looks(
    place: str, sweep: Path, littered: tuple[Path, Plan, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay, plan, _ = littered
    scandir, folder = os.scandir, plan.root / place.format(plan.runs[0].trajectory.id)
    for name in ("deeper/x", "deep/stored.json", ".x.0123abcd.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    def scan(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(path) == folder:
            with scandir(path) as entries:
                listed = _ListedThenGone(entries)
            for name in ("deeper", "deep", ".x.0123abcd.tmp"):
                shutil.rmtree(folder / name) if name[0] != "." else (folder / name).unlink()
            monkeypatch.setattr(os, "scandir", scandir)
            return listed
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    code, text = call("gc", sweep, "--overlay", overlay, "--dry-run")
    assert (code, "would go" in text) == (0, True), text
    assert not (folder / "deep").exists()


def test_gc_keeps_the_snapshots_of_cells_that_lack_something(
    sweep: Path, littered: tuple[Path, Plan, set[str]], tmp_path: Path
) -> None:
    overlay, _, _ = littered
    more = tmp_path / "more.yaml"
    more.write_text("measures: [token_length, layer_change]\n")
    shown = json.loads(call("gc", sweep, "--overlay", overlay, "--overlay", more, "--dry-run", "--json")[1])
    assert {item["kind"] for item in shown["waste"]} == {"attempt", "temporary"}


def test_gc_keeps_the_snapshots_that_a_run_of_another_sweep_wants(
    sweep: Path, littered: tuple[Path, Plan, set[str]]
) -> None:
    overlay, plan, _ = littered
    cell = plan.runs[1].cells[0].cell
    with register_run(Ledger(plan.storage).sweeps, "other", "test") as run:
        publish_requirements(run, {cell.id: ["another benchmark"]})
        shown = json.loads(call("gc", sweep, "--overlay", overlay, "--dry-run", "--json")[1])
        removed = [item["path"] for item in shown["waste"] if item["kind"] == "snapshot"]
        assert removed and not any(path.endswith(f"epoch-{cell.epoch}") for path in removed)
    shown = json.loads(call("gc", sweep, "--overlay", overlay, "--dry-run", "--json")[1])
    assert len([item for item in shown["waste"] if item["kind"] == "snapshot"]) == len(removed) + 1


def test_gc_keeps_the_snapshots_that_another_sweep_keeps_for_good_and_not_those_of_its_own_last_policy(
    sweep: Path, littered: tuple[Path, Plan, set[str]]
) -> None:
    overlay, plan, _ = littered
    ledger = Ledger.open(plan.root)

    def collected() -> tuple[int, list[str]]:
        shown = json.loads(call("gc", sweep, "--overlay", overlay, "--dry-run", "--json")[1])
        return sum(item["kind"] == "snapshot" for item in shown["waste"]), shown["kept"]

    as_it_ran = plan_of(sweep)
    save_last_plan(as_it_ran, ledger)
    assert collected() == (2, [])
    file = as_it_ran.sweep.file.model_copy(update={"name": "other"})
    save_last_plan(replace(as_it_ran, sweep=replace(as_it_ran.sweep, file=file)), ledger)
    count, kept = collected()
    assert (count, len(kept)) == (0, 2)
    assert all("sweep other keeps it (storage.keep_snapshots)" in line for line in kept)


def test_gc_of_caches_removes_what_this_file_does_not_use(sweep: Path, copied: Callable[..., Path]) -> None:
    overlay = copied()
    assert "nothing to remove" in call("gc", sweep, "--overlay", overlay, "--caches")[1]
    overlay = copied(mixtures={"one": {"samples": 64}}, evaluation={"tasks": []})
    root = plan_of(sweep, overlay).root
    shown = json.loads(call("gc", sweep, "--overlay", overlay, "--caches", "--json")[1])
    assert sorted(item["kind"] for item in shown["waste"]) == ["requests", "requests", "tokens", "tokens"]
    assert list((root / "cache/tokens").iterdir()) == list((root / "cache/requests").iterdir()) == []


@pytest.mark.parametrize("damage", ["", "null", "[]", "{}", '{"label": [], "shots": 0, "limit": 1}'])
def test_gc_of_caches_takes_what_cannot_be_read_for_unused(
    sweep: Path, copied: Callable[..., Path], damage: str
) -> None:
    overlay = copied()
    path = next((plan_of(sweep, overlay).root / "cache/requests").glob("*/manifest.json"))
    path.write_text(damage)
    shown = json.loads(call("gc", sweep, "--overlay", overlay, "--caches", "--json")[1])
    assert [(item["kind"], item["path"]) for item in shown["waste"]] == [("requests", str(path.parent))]


@pytest.mark.parametrize("damage", ["", "null", "{}", '{"epochs": {}}', '{"epochs": {"2": {}}}'])
def test_gc_keeps_a_checkpoint_where_a_training_that_may_have_spent_it_is_damaged(
    sweep: Path, copied: Callable[..., Path], damage: str
) -> None:
    overlay = copied()
    plan = plan_of(sweep, overlay)
    home = plan.root / "trajectories" / plan.runs[0].trajectory.id
    (home / "resume/1-00000002-abc").mkdir(parents=True)
    (home / "resume/latest.json").write_text('{"name": "1-00000002-abc"}')
    outcome = home / "training/attempt-1/training.json"
    sound = outcome.read_text()
    outcome.write_text(damage)
    assert "nothing to remove" in call("gc", sweep, "--overlay", overlay)[1]
    outcome.write_text(sound)
    assert "1 item" in call("gc", sweep, "--overlay", overlay)[1]


def test_gc_removes_the_checkpoint_of_a_training_that_no_sweep_asks_for_once_it_is_told_to(
    sweep: Path, copied: Callable[..., Path]
) -> None:
    overlay = copied()
    plan = plan_of(sweep, overlay)
    recipe = replace(plan.runs[0].trajectory.recipe, id=16 * "a")
    asking = replace(plan.runs[0], trajectory=replace(plan.runs[0].trajectory, recipe=recipe))
    ledger, home = Ledger.open(plan.root), plan.root / "trajectories" / recipe.id
    (home / "resume/1-00000002-abc").mkdir(parents=True)
    (home / "resume/latest.json").write_text('{"name": "1-00000002-abc"}')

    def collected(*more: str) -> tuple[list[str], list[str]]:
        shown = json.loads(call("gc", sweep, "--overlay", overlay, "--json", *more)[1])
        return [item["kind"] for item in shown["waste"]], shown["kept"]

    other = plan.sweep.file.model_copy(update={"name": "other"})
    save_last_plan(replace(plan, runs=(asking,), sweep=replace(plan.sweep, file=other)), ledger)
    assert collected("--unasked") == ([], [])
    save_last_plan(replace(plan, sweep=replace(plan.sweep, file=other)), ledger)
    told, kept = collected()
    assert (told, len(kept)) == ([], 1)
    assert "no sweep here asks for this training any more; --unasked removes it" in kept[0]
    (ledger.sweep("other").local("plan.json")).write_text("{}")  # nobody knows what it asks for
    assert collected("--unasked") == ([], [])
    save_last_plan(replace(plan, sweep=replace(plan.sweep, file=other)), ledger)
    assert collected("--unasked") == (["unasked"], [])
    assert not (home / "resume").exists()


# retry


def test_retry_takes_up_what_failed_or_is_partial_and_leaves_diverged_out(
    sweep: Path, copied: Callable[..., Path]
) -> None:
    overlay = copied(settings={"defaults": {"seed": 1}})
    plan = plan_of(sweep, overlay)
    recorder, (full, lora) = make_record_writer(plan), plan.runs
    recorder.failed(full.cells[0], 1, "OSError: [/disk] is full\nmore")
    for cell, details in (
        (full.cells[1], {"status": Status.DIVERGED, "error": "loss is nan"}),
        (lora.cells[1], {"status": Status.PARTIAL, "missing": {"facts_mc-0shot": "no [/data]"}}),
    ):
        recorder.ledger.write_record(recorder.record(cell, now(), 1, **details))
    plan = plan_of(sweep, overlay)
    narrowed = select_failed(plan, parse_where(None))
    assert [(cell.status, cell.cell.epoch) for cell in narrowed.cells] == [(Status.FAILED, 1), (Status.PARTIAL, 2)]
    assert [run.trajectory.id for run in narrowed.runs] == [full.trajectory.id, lora.trajectory.id]
    text = printed(retry_view(narrowed, recorder.ledger, count_diverged(plan, parse_where(None))))
    for part in ("OSError: [/disk] is full", "facts_mc-0shot: no [/data]", NAME, "1 cell is DIVERGED: a result"):
        assert part in text
    assert select_failed(plan, parse_where("method=lora")).runs[0].cells[0].status is Status.PARTIAL
    assert not select_failed(plan, parse_where("epoch=0")).cells
    assert "nothing to retry" in printed(retry_view(select_failed(plan, parse_where("epoch=0")), recorder.ledger))


# doctor, report, ui, mirror


def test_doctor_of_a_good_sweep_is_not_red(sweep: Path) -> None:
    code, text = call("doctor", sweep, "--json")
    found = {item["what"]: item["level"] for item in json.loads(text)}
    assert (code, "red" in found.values()) == (0, False)
    assert {"Python", "CPU", "RAM", "storage", "GPU", "C compiler", "open files", "/dev/shm", "ray", "tracker", "HF cache", "offline"} <= set(found)  # fmt: skip
    assert "ok" in call("doctor")[1]


def test_doctor_ends_with_1_when_the_tracker_or_the_storage_cannot_be_used(sweep: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text('tracking: {mlflow: "http://u:hunter2@127.0.0.1:9"}\nstorage: {root: "${NO_SUCH_VARIABLE}"}\n')
    code, text = call("doctor", sweep, "--overlay", overlay)
    assert (code, "NO_SUCH_VARIABLE, which is not set" in text) == (1, True)
    overlay.write_text('tracking: {mlflow: "http://u:hunter2@127.0.0.1:9"}\n')
    code, text = call("doctor", sweep, "--overlay", overlay)
    assert (code, "BAD" in text, "no tracking server that answers" in text, "hunter2" in text) == (1, True, True, False)


def test_versions_that_are_not_the_tested_ones_are_yellow(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# made by hand\nTorch==0.1 ; python_version > '3'\n")
    assert pinned_versions(path) == {"torch": "0.1"}
    found = {finding.what: finding for finding in check_packages(pinned_versions(path))}
    assert found["torch"].level is Level.WARN and "is not the tested 0.1" in found["torch"].text
    assert pinned_versions(tmp_path / "none.txt") == {}
    assert [finding.level for finding in check_packages({})] == [Level.WARN]


def test_report_is_written_beside_the_sweep_or_where_asked(sweep: Path, tmp_path: Path) -> None:
    assert call("report", sweep)[0] == 0
    assert (sweep.parent / "ledger" / "sweeps" / "small" / "report" / "report.html").is_file()
    _, text = call("report", sweep, "--out", tmp_path / "here")
    assert f"report: {tmp_path / 'here' / 'report.html'}" in text
    assert (tmp_path / "here" / "table.csv").is_file()


def test_sweep_file_that_is_not_there_is_told_so(full: str, tmp_path: Path) -> None:
    for verb in ("show", "logs"):
        code, text = call(verb, full, "--sweep", tmp_path / "nope.yaml")
        assert (code, "nope.yaml: there is no such file" in text) == (2, True), text


def test_place_that_cannot_be_written_is_told_in_a_sentence(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    lora = cell_of(plan_of(sweep), "lora", 2)
    for option, arguments in {
        "--out": ("report", sweep, "--out", below),
        "folder": ("export", lora, below, "--sweep", sweep),
    }.items():
        code, text = call(*arguments)
        assert (code, f"{option}: cannot be written (" in text) == (2, True), text


def artifacts_of_sweep(store: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'small'")
    return sorted(file.path for file in client.list_artifacts(run.info.run_id))


def test_mirror_fills_the_store_that_ui_shows(sweep: Path, copied: Callable[..., Path]) -> None:
    overlay = copied()
    root = plan_of(sweep, overlay).root
    shutil.rmtree(root / "sweeps" / "small" / "report", ignore_errors=True)  # which another test may have written
    code, text = call("ui", sweep, "--overlay", overlay)
    assert (code, "has nothing to show yet" in text) == (2, True)
    code, text = call("mirror", sweep, "--overlay", overlay)
    assert (code, "5 cells" in text) == (0, True)
    store = root / "mlflow.db"
    assert artifacts_of_sweep(store) == ["sweep.yaml"]
    assert call("report", sweep, "--overlay", overlay)[0] == 0
    assert call("mirror", sweep, "--overlay", overlay)[0] == 0
    assert artifacts_of_sweep(store) == ["report.html", "sweep.yaml"]
    assert re.fullmatch(
        r"/#/experiments/\d+/runs\?workflowType=machine_learning&.*", runs_page(f"sqlite:///{store}", "small")
    )
    assert runs_page(f"sqlite:///{store}", "another") == ""
    absent = store.with_name("absent.db")
    assert (runs_page(f"sqlite:///{absent}", "small"), absent.exists()) == ("", False)


def test_ui_prints_its_address_alone_and_what_the_server_fails_at_and_leaves_nobody(
    sweep: Path, copied: Callable[..., Path], tmp_path: Path
) -> None:
    overlay, port, out = copied(), free_port(), tmp_path / "printed"
    assert command_in_process("mirror", sweep, "--overlay", overlay, out=out)[0] == 0
    command = ("ui", str(sweep), "--overlay", str(overlay), "--port", str(port))
    adopt_orphans()
    for number, code in ((signal.SIGINT, 0), (signal.SIGHUP, 128 + signal.SIGHUP)):  # of a terminal: to everybody
        before = {process.pid for process in descendants()}
        out.unlink()
        served = start_session(run_command, command, out)
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        address = out.read_text()  # which comes once it answers
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"<title>MLflow</title>" in page.read()
        assert len({process.pid for process in descendants()} - before) >= 3, "the verb, its server, a worker of that"
        os.killpg(served.pid or 0, number)
        assert (end(served, 20), out.read_text()) == (code, address)
        assert address.startswith(f"MLflow: http://127.0.0.1:{port}/#/experiments/")
        while (left := {process.pid for process in descendants()} - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == set()
    with closing(sqlite3.connect(plan_of(sweep, overlay).root / "mlflow.db", isolation_level=None)) as store:
        store.execute("update alembic_version set version_num = 'of another MLflow'")
    failed, text = command_in_process(*command, out=out)
    assert failed and "out-of-date database schema" in text


def test_verbs_on_a_sweep_that_never_ran_say_so(sweep: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"storage: {{root: {tmp_path / 'nothing'}}}\n")
    for arguments in (("gc", sweep), ("report", sweep), ("mirror", sweep), ("best", sweep)):
        code, text = call(*arguments, "--overlay", overlay)
        assert (code, f"{overlay}: storage.root: holds nothing yet: run the sweep first" in text) == (2, True)
    assert not (tmp_path / "nothing").exists()
