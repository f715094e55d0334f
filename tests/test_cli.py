"""What a user meets: every mistake ends in sentences and an exit code, never in a traceback."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from small_sweep import small_sweep

from massive_sft.cli.app import main
from massive_sft.core.files import write_json
from massive_sft.core.imports import heavy_imports

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return exit code, stdout and stderr, the latter on one line a problem."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["massive-sft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def edited_model(folder: Path, **changes: Any) -> dict[str, Any]:
    """A copy of a tiny model with its configuration changed."""
    model = folder / "edited"
    shutil.copytree(folder / "world" / "models" / "tiny-llama", model)
    write_json(model / "config.json", json.loads((model / "config.json").read_text()) | changes)
    return {"models": {"llama": {"path": str(model)}}}


def slow_tokenizer(folder: Path) -> dict[str, Any]:
    """A model whose tokenizer exists only in Python: one token a byte, no character offsets."""
    changes = edited_model(folder)
    model = Path(changes["models"]["llama"]["path"])
    for path in model.glob("tokenizer*"):
        path.unlink()
    write_json(model / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>"})
    return changes


def no_model(folder: Path) -> dict[str, Any]:
    (folder / "empty").mkdir()
    (folder / "empty" / "config.json").write_text("{}")
    return {"models": {"llama": {"path": str(folder / "empty")}}}


def data(text: str, name: str = "d.jsonl", **changes: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / name).write_text(text)
        dataset = {"path": name, "format": "p3"} | changes
        return {"datasets": {"facts": dataset}, "mixtures": {"one": {"each": "facts"}}}

    return make


def setting(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    plain = {"method": "full", "lr": 1e-3, "batch": 32, "max_length": 128, "precision": "fp32"}
    return lambda folder: {"settings": dict.fromkeys(("full", "lora"), plain | changes)}


def newer_ledger(folder: Path) -> dict[str, Any]:
    write_json(folder / "ledger" / "ledger.json", {"schema": 99})
    return {}


def no_database(folder: Path) -> dict[str, Any]:
    (folder / "mlflow.db").write_text("this is no database, however long it may be" * 100)
    return {"tracking": {"mlflow": f"sqlite:///{folder / 'mlflow.db'}"}}


ROW = '{"prompt": "a", "completion": "b"}\n'
BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "unknown key": (lambda _: {"modles": {}}, "unknown key, got 'modles' (did you mean 'models'?)"),
    "weight of zero": (lambda _: {"mixtures": {"one": {"weights": {"facts": 0}, "samples": 5}}}, "mixtures.one.weights.facts: must be > 0"),
    "no such model": (lambda _: {"models": {"llama": {"path": "none"}}}, "models.llama.path: there is no such file or folder"),
    "model's name misspelt": (lambda f: {"models": {"llama": {"path": str(f / "world" / "models" / "tiny-lama")}}}, "there is no such file or folder (did you mean tiny-llama?)"),
    "no model": (no_model, "models.llama.path: "),
    "slow tokenizer": (slow_tokenizer, "has a slow tokenizer without character offsets"),
    "mixture of experts": (lambda f: edited_model(f, num_local_experts=4), "is a mixture of experts"),
    "quantised base": (lambda f: edited_model(f, quantization_config={"quant_method": "gptq", "bits": 4}), "has quantised weights"),
    "vocabulary smaller than the tokenizer's": (lambda f: edited_model(f, vocab_size=50), "models.llama: has 50 tokens, but its tokenizer makes token"),
    "empty file": (data(""), "d.jsonl"),
    "broken JSON line": (data(ROW * 2 + '{"prompt": \n'), "d.jsonl:3"),
    "missing column": (data('{"question": "a", "completion": "b"}\n'), "'prompt'"),
    "too many samples": (lambda _: {"mixtures": {"one": {"each": "facts", "samples": 100_000}}}, "must be at most 1,440 samples"),
    "special token in data": (data('{"prompt": "a", "completion": "b</s>"}\n'), "strip"),
    "no trainable token left": (setting(max_length=8), "trainable token"),
    "too long for the model": (lambda f: edited_model(f, max_position_embeddings=32), "positions"),
    "no such task file": (lambda _: {"evaluation": {"tasks": [{"path": "sweeep.yaml"}]}}, "evaluation.tasks[0].path: there is no such file (did you mean sweep.yaml?)"),
    "unknown task": (lambda _: {"evaluation": {"tasks": [{"name": "gsm9k"}]}}, "evaluation.tasks[0].name: must be a task or group that lm-eval knows, got 'gsm9k' (did you mean 'gsm8k' or "),
    "unknown suite": (lambda _: {"evaluation": {"suites": ["paper"]}}, "valid: paper_few_shot, paper_generated, paper_zero_shot"),
    "ZeRO-0 with bf16": (lambda f: setting(precision="bf16")(f) | {"resources": [{"zero": 0}]}, "resources"),
    "root is a file": (lambda f: {"storage": {"root": str(f / "sweep.yaml")}}, "sweep.yaml: storage.root: must be a folder that can be written"),
    "root with a line break": (lambda _: {"storage": {"root": "a\nb"}}, "storage.root: must be a path of printable characters"),
    "root is a bucket": (lambda _: {"storage": {"root": "s3://bucket/runs"}}, "s3"),
    "ledger of a newer schema": (newer_ledger, "has schema 99"),
    "tracker that does not answer": (lambda _: {"tracking": {"mlflow": "http://user:hunter2@127.0.0.1:9"}}, "tracking.mlflow: is no tracking server that answers"),
    "tracker that is no database": (no_database, "tracking.mlflow: is no SQLite database"),
    "variable that is not set": (lambda _: {"storage": {"root": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE, which is not set"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_check_refuses_bad_input_in_a_sentence(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str
) -> None:
    make, message = BAD[name]
    small_sweep(tmp_path)  # makes the world that the changed file refers to
    path = small_sweep(tmp_path, **make(tmp_path))
    code, _, text = call("check", path)
    assert message in text
    assert code == 2
    assert "Traceback" not in text
    assert text.count("evaluation.tasks[0].path") <= 1  # plan finds a missing file, and what builds requests does
    assert "hunter2" not in text


def test_check_reports_problems_of_all_kinds_at_once(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    changes = data(ROW + "{\n")(tmp_path) | {"tracking": {"mlflow": "ftp://x"}, "resources": [{"zero": 0}]}
    changes |= setting(precision="bf16")(tmp_path)
    code, _, text = call("check", small_sweep(tmp_path, **changes))
    assert code == 2
    for part in ("d.jsonl:2", "tracking.mlflow", "resources"):
        assert part in text


def test_check_of_a_good_sweep_is_ready(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = call("check", small_sweep(tmp_path))
    assert (code, "ready" in out) == (0, True)


def test_sqlite_tracker_is_accepted(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = small_sweep(tmp_path, tracking={"mlflow": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    assert call("check", path)[0] == 0


def test_plan_writes_one_csv_line_a_cell(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = call("plan", small_sweep(tmp_path), "--cells", tmp_path / "cells.csv")
    assert code == 0
    assert "5 cells: 5 WAITING" in out
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 6


def test_plan_with_overlay_shows_the_changed_sweep(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("mixtures: {one: {samples: 16}}\n")
    _, out, _ = call("plan", small_sweep(tmp_path), "--overlay", overlay, "--json")
    assert json.loads(out)["runs"][0]["steps_per_epoch"] == 2


def test_inspect_marks_the_trained_text(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = call("inspect", small_sweep(tmp_path), "-n", 1)
    assert code == 0
    assert "###Question: " in out
    assert "</s>⟧" in out


def test_inspect_of_a_benchmark_shows_prompt_shots_and_what_is_scored(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    tasks = [{"path": str(tmp_path / "world" / "tasks" / "facts_mc.yaml")}]
    tasks.append({"path": str(tmp_path / "world" / "tasks" / "facts_gen.yaml"), "shots": [0, 2]})
    path = small_sweep(tmp_path, evaluation={"protocol": {"dtype": "fp32", "template": "training"}, "tasks": tasks})
    code, out, _ = call("inspect", path, "--task", "facts_mc", "-n", 1)
    assert code == 0 and "facts_mc-0shot: 120 questions, 0 shots, template training" in out
    (asked,) = [line for line in out.splitlines() if "right: " in line]
    right = asked.partition("right: ")[2]
    assert re.search(r"<s>###Question: What is .*\?\n###Answer:⟦ \w+⟧\nor ⟦", out)  # the space is the answer's
    assert len(re.findall(r"⟦ \w+⟧", out)) == 4 and f"⟦ {right}⟧" in out
    code, out, _ = call("inspect", path, "--task", "facts_gen-2shot", "-n", 1)
    assert code == 0 and "2 shots" in out and "0 shots" not in out
    assert len(re.findall(r"\?", out)) == 3 and "generated: up to 16 tokens after ' '" in out
    code, _, text = call("inspect", path, "--task", "facts_gem")
    assert (code, "--task: is not asked of these cells" in text, "facts_gen-0shot, facts_gen-2shot" in text) == (
        2,
        True,
        True,
    )
    assert not (tmp_path / "ledger").exists()


def test_inspect_takes_the_name_that_a_task_file_gives_where_one_file_has_it(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    small_sweep(tmp_path)  # makes the world that the copies are of
    for name in ("quiz", "again"):
        shutil.copy(tmp_path / "world" / "tasks" / "facts_mc.yaml", tmp_path / f"{name}.yaml")
    evaluation = {"protocol": {"dtype": "fp32"}, "tasks": [{"path": "quiz.yaml", "shots": [0, 1]}]}
    path = small_sweep(tmp_path, evaluation=evaluation)
    for name, labels in {"facts_mc": ["quiz-0shot", "quiz-1shot"], "quiz": ["quiz-0shot", "quiz-1shot"]}.items():
        code, out, _ = call("inspect", path, "--task", name, "-n", 1)
        assert (code, re.findall(r"^(\S+): 120 questions", out, re.M)) == (0, labels)
    evaluation["tasks"].append({"path": "again.yaml"})
    code, _, text = call("inspect", small_sweep(tmp_path, evaluation=evaluation), "--task", "facts_mc")
    assert code == 2 and "got 'facts_mc'; valid: quiz-0shot, quiz-1shot, again-0shot" in text


def test_inspect_needs_no_weights_and_says_all_that_is_missing_where_it_fails(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = small_sweep(tmp_path)
    for weights in (tmp_path / "world" / "models").rglob("*.safetensors"):
        weights.unlink()
    code, out, _ = call("inspect", path, "-n", 1)
    assert (code, "</s>⟧" in out) == (0, True)
    for data in (tmp_path / "world" / "data").iterdir():
        data.unlink()
    code, _, text = call("inspect", path, "-n", 1)
    assert code == 2
    assert "has no weights" in text and "there is no such file" in text


def test_inspect_of_an_unknown_model_names_the_known_ones(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, text = call("inspect", small_sweep(tmp_path), "--model", "lama")
    assert code == 2
    assert "--model: is not in the sweep, got 'lama' (did you mean 'llama'?)" in text


def test_show_of_an_unknown_cell_is_a_sentence(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    code, _, text = call("show", "xyz", "--sweep", path)
    assert (code, "status SWEEP` lists them), got 'xyz'" in text) == (2, True)


def test_names_are_printed_as_they_are(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    small_sweep(tmp_path)
    models = {"a[/x]b:smile:": {"path": str(tmp_path / "world" / "models" / "tiny-llama")}}
    path = small_sweep(tmp_path, models=models, storage={"root": str(tmp_path / "x[/b]y")})
    for verb in ("plan", "check", "status"):
        code, out, text = call(verb, path)
        assert (code, "Traceback" in text) == (0, False)
        assert verb == "check" or ("a[/x]b:smile:" in out and "x[/b]y" in out)
    assert "a[/x]b:smile:" in call("inspect", path, "-n", 1)[1]


def test_plan_to_a_file_that_cannot_be_written_is_a_sentence(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, text = call("plan", small_sweep(tmp_path), "--cells", tmp_path / "none" / "x.csv")
    assert (code, "--cells: cannot be written (No such file or directory)" in text) == (2, True)


def test_terminal_that_knows_ascii_alone_gets_question_marks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "massive_sft", "plan", str(small_sweep(tmp_path))]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, b"cost: training ? " in done.stdout) == (0, True), done.stderr


def test_show_looks_where_the_overlay_says(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"storage: {{root: {tmp_path / 'elsewhere'}}}\n")
    (tmp_path / "elsewhere").mkdir()  # and no ledger
    _, _, text = call("show", "abc", "--sweep", small_sweep(tmp_path), "--overlay", overlay)
    assert "elsewhere" in text


def test_interrupt_while_checking_ends_with_a_sentence(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = small_sweep(tmp_path)
    monkeypatch.setattr("massive_sft.cli.check.load_plan", interrupted)
    code, _, text = call("check", path)
    assert (code, "interrupted; run the same command to go on" in text) == (130, True)


def test_interrupt_while_the_command_is_imported_ends_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-P", "-m", "massive_sft", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; run the same command to go on\n")


def test_piped_output_holds_a_line_a_row(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    command = [sys.executable, "-m", "massive_sft", "plan", str(path)]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "2 training runs, 4 epochs in all, give 4 trained cells, which one by one would take 6 epochs" in done.stdout


def test_command_line_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    command = [sys.executable, "-m", "massive_sft", "plan", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    assert "2 training runs, 4 epochs in all, give 4 trained cells, which one by one would take 6 epochs" in done.stdout


class Knot:
    itself: Knot


def test_heavy_imports_go_without_the_garbage_collector_and_are_left_out_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collections: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        collections.append(phase)

    garbage = Knot()
    garbage.itself, gone = garbage, weakref.ref(garbage)
    del garbage
    try:
        with heavy_imports():
            assert gone() is None, "what was garbage before is not kept for good"
            gc.callbacks.append(note)
            stays = [[number] for number in range(10_000)]
            monkeypatch.setitem(sys.modules, "heavy", ModuleType("heavy"))
            assert not collections
        assert gc.isenabled() and (left_out := gc.get_freeze_count()) >= len(stays)
        made = [[number] for number in range(10_000)]
        with heavy_imports():
            pass
        assert gc.get_freeze_count() < left_out + len(made), "what is there already is imported by no block"
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
    gc.disable()
    try:
        with heavy_imports():
            pass
        assert not gc.isenabled(), "who has it off keeps it off"
    finally:
        gc.enable()
        gc.unfreeze()


def test_end_leaves_the_last_garbage_collection_nothing_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds where torch and Ray are loaded, in which a finished command looks as if it hung."""
    monkeypatch.setattr(sys, "argv", ["massive-sft", "--help"])
    try:
        with pytest.raises(SystemExit):
            main()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
