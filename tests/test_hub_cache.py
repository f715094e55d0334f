"""A hub's cache that holds a part of a repository, as libraries leave it that load single files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from local_server import serving
from small_sweep import copy_world, small_sweep

from massive_sft.models import hub
from massive_sft.models.hub import pinned_folder
from massive_sft.models.load_errors import load_error
from massive_sft.sweep.schema import Dataset, Model

COMMIT = "a" * 40
ROWS = (100, 1340)  # of the two files of the dataset


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A hub with a model, and a dataset of two files; its address."""
    copy_world(tmp_path / "world")
    served = tmp_path / "served"
    shutil.copytree(tmp_path / "world" / "models" / "tiny-llama", served / "models" / "acme" / "tiny")
    facts = served / "datasets" / "acme" / "facts"
    facts.mkdir(parents=True)
    lines = (tmp_path / "world" / "data" / "facts.jsonl").read_text().splitlines(keepends=True)
    (facts / "a.jsonl").write_text("".join(lines[: ROWS[0]]))
    (facts / "b.jsonl").write_text("".join(lines[ROWS[0] :]))
    with serving(type("Served", (Hub,), {"root": served})) as address:
        yield address


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub's libraries ask to load the repositories of a folder, all of one commit."""

    root: Path

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/").split("/")
        if path[0] == "api":
            repository, what, *below = self.root.joinpath(*path[1:4]), *(path[4:] or [""])
            self.answer(200, json.dumps(self.told(repository, what, "/".join(below[1:]))).encode())
            return
        place = path.index("resolve") if "resolve" in path else 0
        file = self.root.joinpath(*([] if path[0] == "datasets" else ["models"]), *path[:place], *path[place + 2 :])
        if place and file.is_file():
            self.answer(200, file.read_bytes())
        else:
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def told(self, repository: Path, what: str, below: str) -> Any:
        files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
        listed = [{"rfilename": path.name, "size": path.stat().st_size} for path in files]
        if what == "tree":
            return [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _sha1(path.read_bytes())}
                for path in ([] if below else files)
            ]
        return {} if what == "auth-check" else {"id": "acme/one", "sha": COMMIT, "siblings": listed, "tags": []}

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        known = {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, "ETag": f'"{_sha1(data)}"'}
        for name, value in (known | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def online(folder: Path, address: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose cache of the hub is this test's, and whose hub is at an address."""
    known = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    known |= {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "COLUMNS": "250"}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240, env=known, cwd=folder
    )


def test_sweep_of_the_hub_is_checked_without_a_fetch_before(served: str, tmp_path: Path) -> None:
    """The tokenizer comes first, and leaves a folder without weights in the cache."""
    sweep = small_sweep(
        tmp_path,
        models={"llama": {"hub": "acme/tiny", "revision": COMMIT}},
        datasets={"facts": {"hub": "acme/facts", "revision": COMMIT, "format": "alpaca"}},
        evaluation={"base": False, "tasks": []},
        measures=[],
    )
    done = online(tmp_path, served, "-m", "massive_sft", "check", sweep)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dataset_is_read_whole_where_the_cache_has_some_of_its_files(served: str, tmp_path: Path) -> None:
    script = (
        "from massive_sft.data.file_readers import load_rows\n"
        "from massive_sft.sweep.schema import Dataset\n"
        "for files in (['a.jsonl'], None, ['b.jsonl'], ['*.jsonl']):\n"
        f"    data = Dataset(hub='acme/facts', revision='{COMMIT}', format='alpaca', files=files)\n"
        "    print(len(load_rows(data, 'datasets.facts').rows), end=' ')\n"
    )
    done = online(tmp_path, served, "-c", script)
    assert done.stdout.split() == [str(count) for count in (ROWS[0], sum(ROWS), ROWS[1], sum(ROWS))], done.stderr


def test_folder_that_has_the_name_of_a_repository_is_not_taken_for_it(served: str, tmp_path: Path) -> None:
    (tmp_path / "acme" / "facts").mkdir(parents=True)
    (tmp_path / "acme" / "facts" / "own.jsonl").write_text('{"instruction": "Say.", "output": "mine"}\n')
    own = tmp_path / "acme" / "tiny"
    shutil.copytree(tmp_path / "world" / "models" / "tiny-llama", own)
    script = (
        "from massive_sft.data.file_readers import load_rows\n"
        "from massive_sft.models.configuration import load_config\n"
        "from massive_sft.sweep.schema import Dataset, Model\n"
        f"model = load_config(Model(hub='acme/tiny', revision='{COMMIT}'))\n"
        f"rows = load_rows(Dataset(hub='acme/facts', revision='{COMMIT}', format='alpaca'), 'datasets.facts').rows\n"
        "print(model.num_hidden_layers, len(rows))\n"
    )
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    done = online(tmp_path, served, "-c", script)
    assert done.stdout.split() == [str(config["num_hidden_layers"]), str(sum(ROWS))], done.stderr


def test_dataset_whose_download_breaks_off_is_refused_in_a_sentence(tmp_path: Path) -> None:
    class Broken(Hub):
        root = tmp_path / "served"

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            cut = status == 200 and self.path.endswith("a.jsonl") and self.command == "GET"
            super().answer(status, b"" if cut else data, **(headers | ({"Content-Length": "1000"} if cut else {})))
            self.close_connection = True

    facts = tmp_path / "served" / "datasets" / "acme" / "facts"
    facts.mkdir(parents=True)
    (facts / "a.jsonl").write_text("{}")
    script = (
        "from massive_sft.core.errors import InvalidInput\n"
        "from massive_sft.data.file_readers import load_rows\n"
        "from massive_sft.sweep.schema import Dataset\n"
        "try:\n"
        f"    load_rows(Dataset(hub='acme/facts', revision='{COMMIT}', format='alpaca'), 'datasets.facts')\n"
        "except InvalidInput as error:\n"
        "    print(error)\n"
    )
    with serving(Broken) as address:
        done = online(tmp_path, address, "-c", script)
    assert done.stdout.startswith("datasets.facts.hub: cannot be loaded: peer closed connection"), done.stderr[-2000:]


def test_refusal_of_a_model_has_the_cause_that_stands_on_the_next_line() -> None:
    error = OSError("There was a specific connection error when trying to load acme/tiny:\n503 Server Error\nRequest 1")
    assert str(load_error(Model(hub="acme/tiny"), "tokenizer", error)).endswith("load acme/tiny: 503 Server Error")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, of a process that may ask it but gets no answer."""
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", False), ("ENDPOINT", "http://127.0.0.1:9")):
        monkeypatch.setattr(f"massive_sft.models.hub.constants.{name}", value)
    hub._answers.cache_clear()
    hub._lacks_nothing.cache_clear()
    return tmp_path


def test_model_is_in_the_cache_once_all_it_is_loaded_from_is(cache: Path) -> None:
    model, folder = Model(hub="acme/sharded", revision=COMMIT), cache / "models--acme--sharded" / "snapshots" / COMMIT
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    contents = {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}),
        shards[0]: "",
        shards[1]: "",
    }
    folder.mkdir(parents=True)
    for name, content in contents.items():
        assert pinned_folder(model) is None, f"without {name}"
        (folder / name).write_text(content)
    assert pinned_folder(model) == folder
    (folder / "tokenizer.json").unlink()
    assert pinned_folder(model.model_copy(update={"tokenizer": "elsewhere"})) == folder


def test_dataset_of_named_files_is_in_the_cache_once_they_are(cache: Path) -> None:
    folder = cache / "datasets--acme--facts" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("")

    def facts(*files: str) -> Dataset:
        return Dataset(hub="acme/facts", revision=COMMIT, format="alpaca", files=files or None)

    assert pinned_folder(facts("a.jsonl")) == folder
    assert pinned_folder(facts("a.jsonl", "b.jsonl")) is None
    assert pinned_folder(facts()) == folder, "nobody tells what else there is"
