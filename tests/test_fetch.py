"""``fetch`` against a hub-shaped cache and a hub-shaped server: commits pinned, files here, sentences for refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import MassiveSFTError
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.file_readers import load_rows
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.storage import Folder
from massive_sft.models import hub
from massive_sft.models.hub import pinned_folder
from massive_sft.models.location import source, weight_paths
from massive_sft.planning.plan import make_plan
from massive_sft.running.revision_pinning import pin
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Model

COMMIT, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of a hub model and a hub dataset, both in a cache of the hub's layout."""
    small_sweep(tmp_path)
    world, cache = tmp_path / "world", tmp_path / "hf" / "hub"
    model, data = cache / "models--acme--tiny", cache / "datasets--acme--facts"
    for home, commit in ((model, COMMIT), (data, OTHER)):
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
    shutil.copytree(world / "models" / "tiny-llama", model / "snapshots" / COMMIT)
    (data / "snapshots" / OTHER).mkdir(parents=True)
    shutil.copy(world / "data" / "facts.jsonl", data / "snapshots" / OTHER / "facts.jsonl")
    return small_sweep(
        tmp_path,
        models={"llama": {"hub": "acme/tiny"}},
        datasets={"facts": {"hub": "acme/facts", "files": ["facts.jsonl"], "format": "alpaca"}},
        evaluation={"base": False, "tasks": []},
        measures=[],
    )


def run(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process whose hub cache is this test's."""
    known = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    known |= {"HF_HOME": str(folder / "hf"), "COLUMNS": "250", **environment}
    command = [sys.executable, "-m", "massive_sft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=known, cwd=folder)


def call(patch: pytest.MonkeyPatch, folder: Path, *arguments: object, **constants: object) -> tuple[int, str]:
    """Run the command line in this process, which imports nothing anew, with this test's hub cache and such settings."""
    for name, value in {"HF_HUB_CACHE": str(folder / "hf" / "hub"), **constants}.items():
        patch.setattr(f"massive_sft.models.hub.constants.{name}", value)
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, MassiveSFTError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def test_fetch_offline_pins_what_is_here_and_the_sweep_runs_from_it(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(tmp_path, "plan", sweep, HF_HUB_OFFLINE="1")
    assert before.stdout.count("provisional:") == 2
    done = run(tmp_path, "fetch", sweep, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    lock = json.loads((tmp_path / "ledger" / "sweeps" / "small" / "lock.json").read_text())
    assert lock["commits"] == {"models": {"acme/tiny": {"main": COMMIT}}, "datasets": {"acme/facts": {"main": OTHER}}}
    facts = tmp_path / "world" / "data" / "facts.jsonl"
    assert lock["files"][f"dataset:acme/facts@{OTHER}"] == {"facts.jsonl": hash_file(facts)}
    assert "model.safetensors" in lock["files"][f"model:acme/tiny@{COMMIT}"]
    assert "provisional:" not in run(tmp_path, "plan", sweep, HF_HUB_OFFLINE="1").stdout
    code, printed = call(monkeypatch, tmp_path, "run", sweep, "--inline")
    assert (code, "4 COMPLETE" in printed) == (0, True), printed


def test_what_moves_is_pinned_once_and_stays_with_it(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("massive_sft.models.hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("massive_sft.models.hub.constants.HF_HUB_OFFLINE", True)
    provisional, told = make_plan(load_sweep(sweep)), []
    assert len(provisional.unpinned) == 2
    pinned = pin(provisional, told.append)
    assert not pinned.unpinned
    assert told == [f"pinned acme/tiny@main to {COMMIT[:12]}", f"pinned acme/facts@main to {OTHER[:12]}"]
    lock = json.loads((tmp_path / "ledger" / "sweeps" / "small" / "lock.json").read_text())
    assert lock["commits"] == {"models": {"acme/tiny": {"main": COMMIT}}, "datasets": {"acme/facts": {"main": OTHER}}}
    (tmp_path / "hf" / "hub" / "models--acme--tiny" / "refs" / "main").write_text("3" * 40)
    ids = {cell.cell.id for cell in pinned.cells}
    assert {cell.cell.id for cell in make_plan(load_sweep(sweep)).cells} == ids
    assert ids.isdisjoint(cell.cell.id for cell in provisional.cells)
    edited = small_sweep(
        tmp_path,
        models={"llama": {"hub": "acme/tiny", "revision": "v2"}},
        datasets=load_sweep(sweep).file.model_dump(mode="json", include={"datasets"}, exclude_defaults=True)[
            "datasets"
        ],
    )
    (tmp_path / "hf" / "hub" / "models--acme--tiny" / "refs" / "v2").write_text(COMMIT)
    pin(make_plan(load_sweep(edited)), told.append)
    lock = json.loads((tmp_path / "ledger" / "sweeps" / "small" / "lock.json").read_text())
    assert lock["commits"]["models"] == {"acme/tiny": {"main": COMMIT, "v2": COMMIT}}
    assert lock["commits"]["datasets"] == {"acme/facts": {"main": OTHER}}


def test_run_without_a_commit_for_what_moves_is_refused(sweep: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hf" / "hub" / "models--acme--tiny")
    refused = run(tmp_path, "run", sweep, "--inline", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "models.llama.hub: is not in this node's cache" in refused.stderr
    assert not (tmp_path / "ledger" / "sweeps" / "small" / "lock.json").exists()


def test_pinned_model_and_data_are_read_from_the_cache_without_asking_anybody(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even whether something newer is there: nobody would answer at this address."""
    monkeypatch.setattr("massive_sft.models.hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    file = load_sweep(sweep).file
    model = file.models["llama"].model_copy(update={"revision": COMMIT})
    data = file.datasets["facts"].model_copy(update={"revision": OTHER})
    assert source(model)["pretrained_model_name_or_path"] == str(pinned_folder(model))
    assert {path.parent for path in weight_paths(model)} == {pinned_folder(model)}
    assert len(load_rows(data, "datasets.facts").rows) == 1440
    assert pinned_folder(file.models["llama"]) is None, "a branch may move"


def test_fetch_names_everything_that_is_not_here_at_once(sweep: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hf")
    done = run(tmp_path, "fetch", sweep, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "models.llama.hub: is not in this node's cache" in done.stderr
    assert "datasets.facts.hub: is not in this node's cache" in done.stderr
    assert not (tmp_path / "ledger" / "sweeps").exists()


def test_file_that_is_not_there_is_refused_offline_and_online(sweep: Path, tmp_path: Path, server: str) -> None:
    facts = {"hub": "acme/facts", "files": ["facts.jsonl", "other.jsonl"], "format": "alpaca"}
    path = small_sweep(tmp_path, models={"llama": {"hub": "acme/tiny"}}, datasets={"facts": facts})
    done = run(tmp_path, "fetch", path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "datasets.facts.hub: lacks other.jsonl in this node's cache" in done.stderr
    path = small_sweep(tmp_path, models={"open": {"hub": "acme/open"}, "bare": {"hub": "acme/open-bare"}}, measures=[])
    done = run(tmp_path, "fetch", path, HF_ENDPOINT=server)
    assert done.stderr.count("has no file that matches") == 1
    assert "models.bare.hub: has no file that matches model.safetensors or pytorch_model.bin or " in done.stderr


def test_revisions_of_one_commit_keep_the_hashes_of_all_their_files(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf" / "hub" / "datasets--acme--facts" / "snapshots" / OTHER
    shutil.copy(folder / "facts.jsonl", folder / "more.jsonl")
    facts = {"hub": "acme/facts", "files": ["facts.jsonl"], "format": "alpaca"}
    both = {"facts": facts, "more": facts | {"files": ["more.jsonl"], "revision": OTHER}}
    assert run(tmp_path, "fetch", small_sweep(tmp_path, datasets=both), HF_HUB_OFFLINE="1").returncode == 0
    lock = json.loads((tmp_path / "ledger" / "sweeps" / "small" / "lock.json").read_text())
    assert sorted(lock["files"][f"dataset:acme/facts@{OTHER}"]) == ["facts.jsonl", "more.jsonl"]


def test_dry_run_writes_nothing_and_pin_only_no_hashes(sweep: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "fetch", sweep, "--dry-run", HF_HUB_OFFLINE="1")
    assert "all can be read; 0 B would be fetched" in done.stdout
    assert not (tmp_path / "ledger").exists()
    assert "nothing was downloaded" in run(tmp_path, "fetch", sweep, "--pin-only", HF_HUB_OFFLINE="1").stdout
    lock = json.loads((tmp_path / "ledger" / "sweeps" / "small" / "lock.json").read_text())
    assert (lock["commits"]["models"], lock["files"]) == ({"acme/tiny": {"main": COMMIT}}, {})


def test_second_fetch_on_a_node_waits_for_the_first(sweep: Path, tmp_path: Path) -> None:
    lease = Lease.acquire(Folder(tmp_path / "hf" / "hub" / ".massive-sft-fetch"), "the first")
    assert lease is not None
    result: list[Any] = []
    second = threading.Thread(target=lambda: result.append(run(tmp_path, "fetch", sweep, HF_HUB_OFFLINE="1")))
    second.start()
    second.join(timeout=6)
    assert second.is_alive() and not (tmp_path / "ledger" / "sweeps" / "small").exists()
    lease.release()
    second.join(timeout=60)
    assert result[0].returncode == 0


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: acme/open exists, acme/gated needs terms accepted, acme/moved lacks the revision."""

    def do_GET(self) -> None:
        path = self.path
        if "gated" in path and "auth-check" in path:
            self.answer(403, {"error": "gated"}, "GatedRepo")
        elif "/api/models/acme/moved/revision/" in path:
            self.answer(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        elif "auth-check" in path and ("moved" in path or "open" in path or "gated" in path):
            self.answer(200, {})
        elif "/api/models/acme/open-bare" in path:
            self.answer(200, {"id": "acme/open-bare", "sha": COMMIT, "siblings": [{"rfilename": "README.md"}]})
        elif "/api/models/acme/open" in path:
            listed = [{"rfilename": "model.safetensors", "size": 5}, {"rfilename": "pytorch_model.bin", "size": 7}]
            self.answer(200, {"id": "acme/open", "sha": COMMIT, "siblings": listed})
        else:
            self.answer(404, {"error": "Repository not found"}, "RepoNotFound")

    def answer(self, status: int, body: dict[str, Any], code: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


def test_gated_missing_and_moved_repositories_are_told_together_with_the_remedy(
    sweep: Path, tmp_path: Path, server: str
) -> None:
    models = {name: {"hub": f"acme/{name}"} for name in ("open", "gated", "moved", "absent")}
    path = small_sweep(tmp_path, models=models, measures=[])
    done = run(tmp_path, "fetch", path, HF_ENDPOINT=server, HF_TOKEN="hf_canarycanary")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"models.gated.hub: is gated: accept its terms at {server}/acme/gated and name your token" in done.stderr
    assert "models.moved.hub: has no such revision" in done.stderr
    assert "models.absent.hub: is no model on" in done.stderr
    assert "models.open" not in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_older_weights_are_not_fetched_beside_safetensors(sweep: Path, tmp_path: Path, server: str) -> None:
    path = small_sweep(tmp_path, models={"open": {"hub": "acme/open"}}, measures=[])
    done = run(tmp_path, "fetch", path, "--dry-run", HF_ENDPOINT=server)
    assert "5 B would be fetched" in done.stdout, done.stderr


def test_hub_that_does_not_answer_is_a_sentence(sweep: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "fetch", sweep, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "models.llama.hub: cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_of_local_models_has_nothing_to_fetch(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    assert "nothing to fetch" in run(tmp_path, "fetch", path, HF_HUB_OFFLINE="1").stdout
    assert make_plan(load_sweep(path)).unpinned == ()


@pytest.mark.parametrize(
    ("constants", "why"),
    [
        ({"HF_HUB_OFFLINE": False, "ENDPOINT": "http://127.0.0.1:9"}, "cannot be fetched"),
        ({"HF_HUB_OFFLINE": True}, "run `fetch` where"),
    ],
)
def test_check_says_at_once_what_the_hub_does_not_give(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constants: dict[str, object], why: str
) -> None:
    shutil.rmtree(tmp_path / "hf" / "hub")
    code, printed = call(monkeypatch, tmp_path, "check", sweep, **constants)
    assert code == 2
    told = printed.splitlines()
    assert [line.split(": ")[1] for line in told] == ["models.llama.hub", "datasets.facts.hub"], printed
    assert all(why in line for line in told)


def test_code_of_a_trusted_model_is_needed_wherever_it_lies() -> None:
    trusted = hub.repository_of(Model(hub="a/b", trust_remote_code=True), "models.m.hub")
    plain = hub.repository_of(Model(hub="a/b"), "models.m.hub")
    for name in ("modeling.py", "custom_generate/generate.py", "code/of/mine.py"):
        assert trusted.wants(name) and not plain.wants(name)
    assert not trusted.wants("onnx/model.safetensors")
