"""The remembered index of lm-eval's task files is the one that lm-eval makes, of the files as they are now."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from massive_sft.core.files import user_cache_file
from massive_sft.evaluation import task_index
from massive_sft.evaluation.task_index import shipped_tasks

TASK = "task: {}\ndataset_path: json\ntag: [some]\noutput_type: multiple_choice\ndoc_to_text: !function utils.text\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have lm-eval ship two tasks and a group; return their folder."""
    shipped = tmp_path / "tasks"
    (shipped / "own").mkdir(parents=True)
    (shipped / "own" / "one.yaml").write_text(TASK.format("one"))
    (shipped / "own" / "two.yaml").write_text("include: _shared\ntask: two\n")
    (shipped / "own" / "_shared").write_text("dataset_path: shared\ntag: some\n")
    (shipped / "own" / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    monkeypatch.setattr(task_index, "FOLDER", shipped)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(shipped / "manager.py"))
    return shipped


def remembered(memory: Path, monkeypatch: pytest.MonkeyPatch) -> task_index.Index:
    """Return the index where reading task files again would fail."""
    with monkeypatch.context() as patch:
        patch.delattr(task_index, "TaskManager")
        return shipped_tasks(memory)


def test_remembered_index_is_that_of_all_shipped_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = user_cache_file("task-index.json")  # that of all tests, for reading takes seconds: here, if nobody did yet
    assert memory is not None
    managers: list[TaskManager] = []

    def read() -> TaskManager:
        managers.append(TaskManager())
        return managers[-1]

    monkeypatch.setattr(task_index, "TaskManager", read)
    shipped_tasks()
    made = (managers or [TaskManager()])[0].task_index
    assert remembered(memory, monkeypatch) == made
    assert made["gsm8k"].yaml_path is not None and "mmlu" in made


@pytest.mark.parametrize("change", ["added", "edited", "shared edited", "removed"])
def test_changed_folder_is_read_again(folder: Path, tmp_path: Path, change: str) -> None:
    before = shipped_tasks(tmp_path / "index")
    assert before.keys() == {"one", "two", "both", "some"} and before["some"].tags == {"one", "two"}
    file = {"added": "three.yaml", "shared edited": "_shared"}.get(change, "two.yaml")
    if change == "removed":
        (folder / "own" / file).unlink()
    else:
        (folder / "own" / file).write_text("dataset_path: new" if change == "shared edited" else TASK.format("three"))
    after = shipped_tasks(tmp_path / "index")
    assert after.keys() - before.keys() == ({"three"} if change in ("added", "edited") else set())
    assert before.keys() - after.keys() == ({"two"} if change in ("edited", "removed") else set())
    assert change != "shared edited" or after["two"].cfg == {"dataset_path": "new", "task": "two"}


def test_damaged_memory_is_made_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "index"
    made = shipped_tasks(memory)
    whole = memory.read_bytes()
    for damaged in (b"", whole[:-9], whole.replace(b"shared", b"shaded"), b"[]\n"):
        memory.write_bytes(damaged)
        assert shipped_tasks(memory) == made
        assert memory.read_bytes() == whole
        assert remembered(memory, monkeypatch) == made


def test_index_that_cannot_be_remembered_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert shipped_tasks(tmp_path / "file" / "index").keys() == {"one", "two", "both", "some"}
    (folder / "own" / "one.yaml").write_text(TASK.format("one") + "dataset_kwargs: {1: no JSON}\n")
    assert shipped_tasks(tmp_path / "index")["one"].cfg["dataset_kwargs"] == {1: "no JSON"}  # type: ignore[index]
    assert not (tmp_path / "index").exists()
