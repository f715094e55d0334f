"""Files to start from, the JSON Schema of sweep files, ``--version`` and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import massive_sft
from massive_sft.cli.app import app
from massive_sft.cli.init import MACHINES, MODELINE, SCHEMA
from massive_sft.core.errors import InvalidInput
from massive_sft.planning.plan import make_plan
from massive_sft.sweep.json_schema import json_schema
from massive_sft.sweep.load import check_sweep, load_sweep
from massive_sft.sweep.yaml_file import read_yaml

ROOT = Path(__file__).parent.parent
WHOLE = [
    *(ROOT / "sweeps" / f"{name}.yaml" for name in ("quickstart", "local_data", "real_model", "one_gpu", "massive_sft", "preliminary_search")),
    ROOT / "tests" / "data" / "example.yaml",
]  # fmt: skip
SCHEMA_OF_FILES = Draft202012Validator(json_schema())


def as_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(read_yaml(path)))
    return content


@pytest.mark.parametrize("machine", MACHINES)
def test_init_writes_a_sweep_that_loads_and_fits_its_schema(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOT", str(tmp_path / "runs"))
    file = tmp_path / "my.yaml"
    done = CliRunner().invoke(app, ["init", str(file), "--for", machine])
    assert (done.exit_code, str(file) in done.output.replace("\n", "")) == (0, True), done.output
    plan = make_plan(load_sweep(file))
    assert plan.runs and plan.base and not plan.missing
    assert plan.uses_gpus == (machine != "laptop")
    assert file.read_text().startswith(MODELINE)
    assert json.loads((tmp_path / SCHEMA).read_text()) == json_schema()
    SCHEMA_OF_FILES.validate(as_json(file))


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("mine")
    done = CliRunner().invoke(app, ["init", str(file)])
    assert isinstance(done.exception, InvalidInput) and "is there already" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"] and file.read_text() == "mine"


def test_init_for_an_unknown_machine_lists_those_there_are(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "my.yaml"), "--for", "lap"])
    assert str(done.exception) == (
        "--for: must be one of the valid values, got 'lap' (did you mean 'laptop'?); valid: laptop, gpu, cluster"
    )


def test_schema_is_one_and_is_printed() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json.loads(CliRunner().invoke(app, ["schema"]).output) == json_schema()


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_schema_accepts_every_file_that_loads(path: Path) -> None:
    SCHEMA_OF_FILES.validate(as_json(path))


LEGAL: dict[str, Any] = {
    "one epoch": {"blocks": {"snapshots": 1}},
    "a range of epochs": {"blocks": {"snapshots": "1..2"}},
    "schedules by name and in full": {"blocks": {"schedule": ["cosine", {"name": "wsd", "decay": 0.5}]}},
    "clip none": {"settings": {"lora": {"optimizer": {"clip": "none"}}}},
    "one module for LoRA": {"settings": {"lora": {"lora": {"targets": ["q_proj"]}}}},
    "a template of one's own": {"settings": {"defaults": {"template": {"prompt": "{prompt}:"}}}},
    "whole number for a fraction": {"settings": {"full": {"lr": 1}}},
    "zero by number": {"resources": [{"zero": 2}]},
}
ILLEGAL: dict[str, Any] = {
    "unknown section": {"modles": {}},
    "unknown field": {"settings": {"full": {"learning_rate": 1e-5}}},
    "text for a number": {"settings": {"full": {"batch": "32"}}},
    "unknown choice": {"settings": {"full": {"method": "qlora"}}},
    "no such schedule": {"blocks": {"schedule": "step"}},
    "a range that is none": {"blocks": {"snapshots": "1-2"}},
    "unknown measure": {"measures": ["speed"]},
    "zero of 4": {"resources": [{"zero": 4}]},
    "a mixture's unknown rule": {"mixtures": {"m": {"union": ["a"]}}},
}


def small(changes: dict[str, Any]) -> dict[str, Any]:
    """A whole sweep with entries merged in; those of ``blocks`` into its only block."""
    block = {
        "name": "A",
        "model": "all",
        "mixture": "m",
        "setting": "full",
        "schedule": "constant",
        "horizon": 2,
        "snapshots": [1],
    }
    settings = {
        "full": {"method": "full", "lr": 1e-5},
        "lora": {"method": "lora", "lr": 1e-4},
        "defaults": {"batch": 8},
    }
    merged = {name: entry | changes.get("settings", {}).get(name, {}) for name, entry in settings.items()}
    whole = {
        "schema": 1,
        "name": "s",
        "models": {"a": {"hub": "x/y"}},
        "datasets": {"d": {"hub": "x/z", "format": "alpaca"}},
        "mixtures": {"m": {"each": "d"}},
        "storage": {"root": "r"},
    }
    return whole | changes | {"settings": merged, "blocks": [block | changes.get("blocks", {})]}


@pytest.mark.parametrize("name", LEGAL)
def test_schema_and_loader_accept(name: str) -> None:
    SCHEMA_OF_FILES.validate(small(LEGAL[name]))
    check_sweep(small(LEGAL[name]), Path("x.yaml"))


@pytest.mark.parametrize("name", ILLEGAL)
def test_schema_and_loader_refuse(name: str) -> None:
    assert not SCHEMA_OF_FILES.is_valid(small(ILLEGAL[name]))
    with pytest.raises(InvalidInput):
        check_sweep(small(ILLEGAL[name]), Path("x.yaml"))


def test_version_is_said_without_anything_heavy() -> None:
    code = (
        "import sys; from massive_sft.cli.app import app\n"
        "try: app(['--version'])\n"
        "finally: print([name for name in ('torch', 'ray', 'lm_eval', 'mlflow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"massive-sft {massive_sft.__version__}", "[]"]


@pytest.mark.parametrize(("words", "offered"), [("massive-sft st", "status"), ("massive-sft run --in", "--inline")])
def test_shell_completes_verbs_and_options(words: str, offered: str) -> None:
    code = "from massive_sft.cli.app import app; app(prog_name='massive-sft')"
    completion = {"_MASSIVE_SFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | completion
    )
    assert offered in done.stdout.split()
