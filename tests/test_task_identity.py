"""What names a task: its configuration, and the code that scores it."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_world import own_datasets_cache, write_tasks

from massive_sft.evaluation.task_identity import config_hash
from massive_sft.evaluation.tasks import load
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
CODE = """
from lm_eval.api.task import ConfigurableTask

class Base(ConfigurableTask):
    def __init__(self, config=None, **more):
        super().__init__(config={key: value for key, value in config.items() if key != "class"}, **more)

    def process_results(self, doc, results):
        return {"acc": VALUE}

class Own(Base):
    pass
"""


def hash_of(path: Path) -> str:
    return config_hash(load(schema.Task(path=str(path), shots=(0,))).tasks["tiny_mc"])


@pytest.mark.parametrize("kind", ["Base", "Own"])
def test_code_of_a_task_s_class_is_part_of_what_it_is(tmp_path: Path, kind: str) -> None:
    hashes = []
    for folder, value in (("one", "0.0"), ("same", "0.0"), ("mended", "1.0")):
        path = write_tasks(tmp_path / folder)["tiny_mc"]
        (path.parent / "own.py").write_text(CODE.replace("VALUE", value))
        path.write_text(f"class: !function own.{kind}\n" + path.read_text())
        hashes.append(hash_of(path))
    assert hashes[0] == hashes[1]
    assert hashes[2] != hashes[0]


def test_task_without_a_class_is_named_by_its_file_alone(tmp_path: Path) -> None:
    assert hash_of(write_tasks(tmp_path)["tiny_mc"]) == "34ce7e6540017ecd"
