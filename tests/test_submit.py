"""A sweep sent to a cluster: what is packaged, what is refused, and a job on a real head, seen again from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import processes
import pytest
import ray
import typer
from commands import Room, start_hiding, start_session
from ray._private import services
from ray_heads import end_session, free_port, node_environment, node_options, start_ray, wait_for
from ruamel.yaml import YAML
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.cli.submit import job, submit
from massive_sft.core.errors import ClusterLost, InvalidInput
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.scheduling import cluster, end_request, package
from massive_sft.scheduling.cluster import connected
from massive_sft.scheduling.cluster_paths import Answer, Wanted
from massive_sft.scheduling.jobs import job_logs, job_status, list_jobs, resolve_address, send_job, submit_job
from massive_sft.scheduling.package import find_tree, write_package
from massive_sft.scheduling.portable import client_only
from massive_sft.scheduling.submit import Command, entrypoint, submission_stem, submit_sweep
from massive_sft.sweep.load import load_sweep

CANARY = "canary-7f3a9c"
cli = typer.Typer()
cli.command()(submit)
cli.command()(job)


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yaml_file(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as text:
        YAML(typ="safe").dump(content, text)
    return path


EMPTY_WEIGHTS = "\2\0\0\0\0\0\0\0{}"  # safetensors without a tensor


def sweep_file(root: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """Write a portable sweep with the small files that it names; ``change`` edits it first."""
    for name in ("config.json", "tokenizer.json"):
        write(root / "models/base" / name, "{}")
    write(root / "models/base/model.safetensors", EMPTY_WEIGHTS)
    write(root / "data/train.jsonl", '{"instruction": "a", "output": "b"}\n')
    write(root / "tasks/test.jsonl", "{}\n")
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}}
    yaml_file(root / "tasks/own.yaml", task)
    content: dict[str, Any] = {
        "schema": 1,
        "name": "portable",
        "models": {"base": {"path": "../models/base"}},
        "datasets": {"own": {"path": "../data/train.jsonl", "format": "alpaca"}},
        "mixtures": {"one": {"each": "own"}},
        "settings": {"full": {"method": "full", "lr": 1e-3, "batch": 8}},
        "blocks": [
            {"name": "A", "model": "all", "mixture": "one", "setting": "full"}
            | {"schedule": "constant", "horizon": 1, "snapshots": 1}
        ],
        "evaluation": {"tasks": [{"path": "../tasks/own.yaml"}]},
        "storage": {"root": "${RUNS}/portable"},
    }
    change(content)
    return yaml_file(root / "sweeps/x.yaml", content)


def refusals(root: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, str]:
    """Return the rule that each place of a sweep breaks, by the place within the file."""
    path = sweep_file(root, change)
    problems = client_only(load_sweep(path), (), find_tree(root))
    assert len({problem.place for problem in problems}) == len(problems)
    return {problem.place.removeprefix(f"{path}: "): problem.rule for problem in problems}


# ---- what is packaged


def test_package_leaves_out_what_ignore_files_name(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "*.bin\n/runs/\n!keep.bin\n")
    write(tmp_path / ".rayignore", "notes.txt\n")
    write(tmp_path / "sub/.gitignore", "local.*\n!local.json\n")
    for name in (
        *("a.py", "keep.bin", "sub/local.json", "sub/runs/x"),
        *("a.bin", "runs/log", "notes.txt", "sub/local.txt", ".git/HEAD", ".venv/python", "__pycache__/a.pyc"),
    ):
        write(tmp_path / name)
    files = find_tree(tmp_path).files
    kept = {".gitignore", ".rayignore", "sub/.gitignore", "a.py", "keep.bin", "sub/local.json", "sub/runs/x"}
    assert files.keys() == kept


def test_package_of_a_folder_in_a_repository_obeys_the_repository(tmp_path: Path) -> None:
    write(tmp_path / ".git/HEAD")
    write(tmp_path / ".gitignore", "study/data/\n")
    write(tmp_path / "study/data/private.jsonl")
    write(tmp_path / "study/x.yaml")
    assert find_tree(tmp_path / "study").files.keys() == {"x.yaml"}


def test_package_too_large_is_refused_with_its_largest_entries(tmp_path: Path) -> None:
    write(tmp_path / "small.txt")
    for name, size in (("weights/model.bin", package.MOST_BYTES), ("log.txt", 2_000_000)):
        write(tmp_path / name)
        os.truncate(tmp_path / name, size)  # sparse: no disk is used
    (problem,) = find_tree(tmp_path).problems
    assert "at most 500 MB, not 3 files, 502 MB" in problem.rule
    assert "weights/ (500 MB), log.txt (2 MB)" in problem.rule


def test_package_with_what_cannot_travel_names_every_such_entry(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    write(tmp_path / "back\\slash")
    problems = find_tree(tmp_path).problems
    assert {Path(problem.place).name for problem in problems} == {"broken", "loop", "back\\\\slash"}


CREDENTIALS = (
    *(
        ".env",
        ".env.production",
        "prod.env",
        ".envrc",
        ".netrc",
        "id_ed25519",
        "server.pem",
        "secrets.yaml",
        "kubeconfig",
    ),
    *(".aws/credentials", ".docker/config.json", ".huggingface/token", "deep/service-account.json", ".ssh/config"),
)
KEYS = {
    "notes.md": "the token is hf_" + "a" * 30,
    "deploy.sh": "export AWS=AKIA" + "A" * 16,
    "conf/tls.txt": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
}


def test_package_leaves_out_credentials_by_name_and_by_content_and_says_so(tmp_path: Path) -> None:
    for name in (*CREDENTIALS, ".env.example", "tokenizer.json", "secretary.py", "credentials.py", "keys.md"):
        write(tmp_path / name, f"TOKEN={CANARY}")
    for name, text in KEYS.items():
        write(tmp_path / name, text)
    tree = find_tree(tmp_path)
    assert tree.files.keys() == {".env.example", "tokenizer.json", "secretary.py", "credentials.py", "keys.md"}
    assert tree.credentials.keys() == {*CREDENTIALS, *KEYS}
    said = list(tree.left_out())
    assert said[0].startswith("left out as credentials: .aws/credentials lies in .aws, a folder of credentials; ")
    assert said[0].endswith(f" and {len(CREDENTIALS) + len(KEYS) - 5} more")
    assert said[-1] == "--include PATH lets one in"
    assert not any(CANARY in sentence for sentence in said)


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words], check=True)


def test_package_of_a_repository_is_what_git_tracks_and_what_the_sweep_names(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    git(tmp_path, "init", "--quiet")
    write(tmp_path / "code.py")
    write(tmp_path / ".env", CANARY)
    git(tmp_path, "add", "code.py", ".env", "sweeps")
    (tmp_path / "broken").symlink_to("nowhere")
    write(tmp_path / "scratch/dump.bin", "x" * 9)
    write(tmp_path / "scratch/.netrc", CANARY)
    tree = find_tree(tmp_path)
    assert tree.files.keys() == {"code.py", "sweeps/x.yaml"}
    assert client_only(load_sweep(path), (), tree) == [] and tree.problems == []
    named = {"data/train.jsonl", "tasks/own.yaml", "tasks/test.jsonl"}
    named |= {f"models/base/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert tree.files.keys() == {"code.py", "sweeps/x.yaml"} | named
    credentials = "left out as credentials: .env has a name of credentials (.env); scratch/.netrc has a name of credentials (.netrc)"
    assert list(tree.left_out()) == [
        credentials,
        "left out, for git does not track them: scratch/, broken",
        "--include PATH lets one in",
    ]


def test_package_of_a_repository_that_git_does_not_read_says_that_nothing_is_left_out_for_it(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt")
    assert list(find_tree(tmp_path).left_out()) == [], "no repository"
    git(tmp_path, "init", "--quiet")
    told = "what git does not track goes along, for git does not tell what it tracks: "
    assert list(find_tree(tmp_path).left_out()) == [f"{told}it tracks nothing here"]
    git(tmp_path, "add", "notes.txt")
    write(tmp_path / "scratch.txt")
    assert find_tree(tmp_path).untracked.keys() == {"scratch.txt"}
    write(tmp_path / ".git/config", "[no")  # as another user's repository, which git refuses as well
    tree = find_tree(tmp_path)
    assert tree.files.keys() == {"notes.txt", "scratch.txt"}
    (sentence,) = tree.left_out()
    assert sentence.startswith(f"{told}fatal: ") and "config" in sentence


def test_package_lets_in_what_include_names(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    write(tmp_path / ".gitignore", "data/\n")
    git(tmp_path, "add", ".gitignore")
    for name in ("data/a.jsonl", "data/b.jsonl", "data/.env", "more/x.txt", "more/.env", "other.txt"):
        write(tmp_path / name)
    assert find_tree(tmp_path).files.keys() == {".gitignore"}
    assert find_tree(tmp_path, ["data/*.jsonl"]).files.keys() == {".gitignore", "data/a.jsonl", "data/b.jsonl"}
    assert find_tree(tmp_path, ["data", "other.txt"]).files.keys() == {
        ".gitignore",
        "data/a.jsonl",
        "data/b.jsonl",
        "other.txt",
    }
    assert find_tree(tmp_path, ["more/.env"]).files.keys() == {".gitignore", "more/.env"}, "named by itself"
    problems = find_tree(tmp_path, ["gone/*", "../x", "/etc/passwd"]).problems
    assert [problem.place for problem in problems] == ["--include"] * 3


def test_package_of_equal_trees_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "sub/x.py", "print()")
        write(tmp_path / name / "run.sh").chmod(0o700)
        write_package(find_tree(tmp_path / name), tmp_path / f"{name}.zip")
    os.utime(tmp_path / "b/sub/x.py", (0, 0))
    write_package(find_tree(tmp_path / "b"), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("sub/x.py") == b"print()"
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o111


def test_package_follows_links_to_data_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/big.jsonl", "data")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/data").symlink_to(tmp_path / "elsewhere")
    tree = find_tree(tmp_path / "tree")
    write_package(tree, tmp_path / "tree.zip")
    with ZipFile(tmp_path / "tree.zip") as archive:
        assert archive.read("data/big.jsonl") == b"data"


# ---- what a cluster would not find


def test_portable_sweep_has_no_problem(tmp_path: Path) -> None:
    assert refusals(tmp_path) == {}


@pytest.mark.parametrize("uri", ["sqlite:///${RUNS}/mlflow.db", "sqlite:////shared/mlflow.db"])
def test_paths_of_the_cluster_are_not_expanded_here(tmp_path: Path, uri: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["models"]["base"] = {"path": "${NOT_SET_HERE}/base", "tokenizer": "${NOT_SET_HERE}/base"}
        content["datasets"]["own"]["path"] = "${DATA:-/shared/data}/train.jsonl"
        content["evaluation"]["tasks"] = [{"path": "${TASKS}/own.yaml"}]
        content["storage"]["root"] = "${RUNS:-/shared/runs}/x"
        content["tracking"] = {"mlflow": uri}

    assert refusals(tmp_path, change) == {}


def test_paths_of_this_machine_are_refused_all_at_once(tmp_path: Path) -> None:
    outside = write(tmp_path / "elsewhere/own.jsonl")
    root = tmp_path / "tree"

    def change(content: dict[str, Any]) -> None:
        content["models"]["gone"] = {"path": "../models/gone"}
        content["models"]["empty"] = {"path": "../data"}
        content["datasets"]["folder"] = {"path": "../data", "format": "alpaca"}
        content["datasets"]["near"] = {"path": "../../elsewhere/own.jsonl", "format": "alpaca"}
        content["datasets"]["ignored"] = {"path": "../data/private.jsonl", "format": "alpaca"}
        content["evaluation"]["tasks"] = [{"path": "../tasks/foreign.yaml"}, {"path": "../tasks/wide.yaml"}]
        content["storage"]["root"] = "../runs"
        content["tracking"] = {"mlflow": "sqlite:///mlflow.db"}

    write(root / ".gitignore", "private.*\n")
    write(root / "data/private.jsonl")
    yaml_file(root / "tasks/foreign.yaml", {"task": "f", "metadata": {"questions": str(outside)}})
    yaml_file(root / "tasks/wide.yaml", {"task": "w", "dataset_kwargs": {"data_files": "../../elsewhere/own.jsonl"}})
    found = refusals(root, change)
    assert {place: rule.split(":")[0].split(" (")[0] for place, rule in found.items()} == {
        "models.gone.path": "there is no such file or folder",
        "models.empty.path": f"{root}/data has no weights",
        "datasets.folder.path": f"{root}/data is a folder",
        "datasets.near.path": f"is outside the packaged folder {root}",
        "datasets.ignored.path": "is left out of the package",
        "evaluation.tasks[0].path: foreign.yaml": "names a path of this machine",
        "evaluation.tasks[1].path: wide.yaml": f"is outside the packaged folder {root}",
        "storage.root": "must be a folder of the cluster that all its nodes see, such as ${RUNS",
        "tracking.mlflow": "is a file in the package, which is lost with the job",
    }


@pytest.mark.parametrize("ignored", ["part-1.safetensors", "*.index.json", "generation_config.json"])
def test_model_folder_with_an_ignored_file_that_is_read_is_refused(tmp_path: Path, ignored: str) -> None:
    def change(_: dict[str, Any]) -> None:
        (tmp_path / "models/base/model.safetensors").unlink()
        shards = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
        for name in shards.values():
            write(tmp_path / "models/base" / name, EMPTY_WEIGHTS)
        write(tmp_path / "models/base/model.safetensors.index.json", json.dumps({"weight_map": shards}))
        write(tmp_path / "models/base/generation_config.json", "{}")
        write(tmp_path / "models/base/modeling.py")  # which nobody trusts

    write(tmp_path / ".gitignore", "consolidated.*\n*.py\n")
    write(tmp_path / "models/base/consolidated.safetensors")
    assert refusals(tmp_path, change) == {}
    write(tmp_path / ".gitignore", ignored)
    assert "is left out of the package" in refusals(tmp_path, change)["models.base.path"]


@pytest.mark.parametrize("data", [{"data_dir": "quiz"}, {"data_files": {"test": "quiz/*.jsonl"}}])
def test_data_folder_of_a_task_file_is_packaged_whole(tmp_path: Path, data: dict[str, Any]) -> None:
    """Beside the task file, and in the folder that the job runs in: the package's top."""
    for place in ("tasks/quiz", "quiz"):
        for name in ("a.jsonl", "b.jsonl"):
            write(tmp_path / place / name)
        yaml_file(tmp_path / "tasks/own.yaml", {"task": "own", "dataset_path": "json", "dataset_kwargs": data})
        path = yaml_file(tmp_path / "tasks/quiz.yaml", {"task": "own", "dataset_path": "json", "dataset_kwargs": data})

        def change(content: dict[str, Any]) -> None:
            content["evaluation"]["tasks"] = [{"path": "../tasks/quiz.yaml"}]

        assert path.is_file() and refusals(tmp_path, change) == {}
        write(tmp_path / place / ".gitignore", "b.*\n")
        assert "is left out of the package" in refusals(tmp_path, change)["evaluation.tasks[0].path: quiz.yaml"]
        shutil.rmtree(tmp_path / place)


def test_absolute_paths_are_the_clusters_wherever_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the sweep file and of task files, files and folders, also behind variables, URLs and includes."""
    shared = tmp_path / "shared"
    for name in ("config.json", "tokenizer.json"):
        write(shared / "base" / name, "{}")
    write(shared / "base/model.safetensors", EMPTY_WEIGHTS)
    folder = write(shared / "quiz/part/a.jsonl").parent.parent
    inner = {"dataset_path": str(folder), "description": "/no_think"}
    yaml_file(shared / "tasks/far.yaml", {"task": "far", "include": "${SHARED}/tasks/part.yaml", **inner})
    yaml_file(shared / "tasks/part.yaml", {"dataset_kwargs": {"data_files": f"file://{shared}/gone.jsonl"}})

    def change(content: dict[str, Any]) -> None:
        content["models"]["base"] = {"path": "${SHARED}/base", "tokenizer": str(shared / "base")}
        content["datasets"]["own"]["path"] = str(shared / "train.jsonl")
        tasks = [{"path": "../tasks/own.yaml"}, {"path": "../tasks/near.yaml"}, {"path": "${SHARED}/tasks/far.yaml"}]
        content["evaluation"]["tasks"] = tasks
        content["storage"]["root"] = str(shared / "runs")

    named = {"data_files": {"test": "${UNSET}/b.jsonl", "train": "${SHARED:-/nowhere}/c.jsonl"}}
    yaml_file(tmp_path / "tree/tasks/near.yaml", {"task": "near", "data_dir": "/shared/of/the/cluster", **named})
    assert refusals(tmp_path / "tree", change) == {}
    monkeypatch.setenv("SHARED", str(shared))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path / "tree")
    wanted = Wanted(load_sweep(sweep_file(tmp_path / "tree", change)))
    assert wanted.paths.keys() == {
        *(str(shared / name) for name in ("base", "base/config.json", "base/tokenizer.json", "base/model.safetensors")),
        *(str(shared / name) for name in ("train.jsonl", "quiz", "quiz/part/a.jsonl", "gone.jsonl", "c.jsonl")),
        *(str(shared / name) for name in ("tasks/far.yaml", "tasks/part.yaml")),
        "/shared/of/the/cluster",
    }
    assert [str(problem) for problem in wanted.problems] == [
        "evaluation.tasks[1].path: near.yaml: needs the environment variable UNSET, which is not set, "
        "got '${UNSET}/b.jsonl'"
    ]


@pytest.mark.parametrize("root", ["runs", "${RUNS:-../runs}", "runs/${USER}"])
def test_storage_that_the_job_would_lose_is_refused(tmp_path: Path, root: str) -> None:
    found = refusals(tmp_path, lambda content: content["storage"].update(root=root))
    assert found.keys() == {"storage.root"}


def test_secret_in_the_tracker_address_is_refused_and_not_shown(tmp_path: Path) -> None:
    uri = f"https://me:{CANARY}@mlflow.example/"
    path = sweep_file(tmp_path, lambda content: content.update(tracking={"mlflow": uri}))
    problems = client_only(load_sweep(path), (), find_tree(tmp_path))
    assert "holds a secret" in problems[0].rule
    assert CANARY not in str(InvalidInput(problems))


def test_sweep_file_outside_the_packaged_folder_is_refused(tmp_path: Path) -> None:
    path = sweep_file(tmp_path / "tree")
    overlay = yaml_file(tmp_path / "more.yaml", {"name": "other"})
    problems = client_only(load_sweep(path, [overlay]), [overlay], find_tree(tmp_path / "tree"))
    assert [problem.place for problem in problems] == [str(overlay)]


def test_entrypoint_names_files_within_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = sweep_file(Path("tree"))
    overlay = yaml_file(Path("tree/two words.yaml"), {"name": "other"})
    sweep, tree = load_sweep(path), find_tree(Path("tree"))
    line = entrypoint(sweep, [overlay], tree, Command())
    assert line == "python -m massive_sft run sweeps/x.yaml --overlay 'two words.yaml'"
    command = Command("run", where="method=lora and epoch!=1", budget=1234567.5, retrain=True, python="python3")
    line = entrypoint(sweep, [], tree, command)
    options = "--where 'method=lora and epoch!=1' --budget-gpu-hours 1234567.5 --retrain"
    assert line == f"python3 -m massive_sft run sweeps/x.yaml {options}"
    assert entrypoint(sweep, [], tree, Command("fetch")) == "python -m massive_sft fetch sweeps/x.yaml"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (Command("train"), "--verb"),
        (Command("retry", budget=1.0), "--budget-gpu-hours"),
        (Command("run", budget=float("nan")), "--budget-gpu-hours"),
        (Command("fetch", retrain=True), "--retrain"),
        (Command("fetch", where="epoch=1"), "--where"),
        (Command(where="epoch"), "--where, character 1"),
    ],
)
def test_command_that_the_cluster_would_refuse_is_refused_here(command: Command, place: str) -> None:
    assert [problem.place for problem in command.problems()] == [place]


def test_submission_is_named_after_the_sweep_the_command_and_the_files(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, lambda content: content.update(name="a.b_c")))
    (one, other) = (write(tmp_path / name, name) for name in ("one.zip", "other.zip"))
    stem = submission_stem(sweep, "run x", one)
    assert stem.startswith("a.b_c-") and stem == submission_stem(sweep, "run x", one)
    assert len({stem, submission_stem(sweep, "retry x", one), submission_stem(sweep, "run x", other)}) == 3


# ---- addresses


def test_address_defaults_to_the_environment_when_it_is_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "https://ray.example/")
    assert resolve_address(None) == "https://ray.example"
    assert resolve_address("http://other:8265") == "http://other:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(None) == "http://127.0.0.1:8265"
    with pytest.raises(InvalidInput, match="http address of a Ray dashboard"):
        resolve_address("ray://head:10001")


def test_submit_without_a_cluster_says_so_beside_the_other_problems(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, lambda content: content["storage"].update(root="runs"))
    with pytest.raises(InvalidInput) as caught:
        submit_sweep(load_sweep(path), (), f"http://127.0.0.1:{free_port()}", tmp_path, print)
    assert [problem.place for problem in caught.value.problems] == ["--address", f"{path}: storage.root"]
    assert caught.value.exit_code == 2


class Dashboard(BaseHTTPRequestHandler):
    """A head's, as far as jobs are submitted to it: an id that it knows is refused, as Ray does."""

    ids: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        known = [
            {"type": "SUBMISSION", "submission_id": one, "status": "FAILED", "entrypoint": "x"} for one in self.ids
        ]
        is_list = self.path.startswith("/api/jobs")
        self._answer(200, known if is_list else {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["submission_id"]
        if asked in self.ids:
            self._answer(500, f"Job with submission_id {asked} already exists.")
            return
        self.ids.append(asked)
        self._answer(200, {"job_id": asked, "submission_id": asked})

    def _answer(self, status: int, content: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(
    ("known", "started"),
    [([], 1), (["s-abc-1"], 2), (["s-abc-2"], 3), (["s-abc-3", "s-abc-1"], 4), (["s-abc-9", "s-abc-10"], 11)],
)
def test_job_whose_equals_were_deleted_gets_an_id_that_none_has(
    known: list[str], started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "ids", [*known, "s-abcd-77", "s-abc-x"])
    with ZipFile(tmp_path / "tree.zip", "w") as file:
        file.writestr("tree/a", "")
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sent = send_job(f"http://127.0.0.1:{server.server_port}", "x", tmp_path / "tree.zip", "s", "s-abc")
        server.shutdown()
    assert (sent.id, sent.is_new, Dashboard.ids[-1]) == (f"s-abc-{started}", True, f"s-abc-{started}")


@pytest.mark.parametrize(("status", "reason"), [(401, "RAY_AUTH_MODE=token"), (404, "not as a Ray dashboard")])
def test_address_of_a_server_that_does_not_let_in_or_is_no_cluster_is_refused(
    status: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InvalidInput, match=reason):
            list_jobs(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """Return why Ray was not joined or started with these variables; that took seconds."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(InvalidInput) as caught, connected():
        pass
    assert time.monotonic() - began < 30
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "names no cluster that answers ([Errno 111] Connection refused)"),
        ("no-such-host.invalid:6379", "names no cluster that answers"),
        ("127.0.0.1:99999", "names no cluster that answers"),
        ("garbage", "names no cluster that answers (no host:port)"),
        ("head:port", "names no cluster that answers"),
        ("http://127.0.0.1:8265", "is a dashboard's address"),
        ("ray://127.0.0.1:10001", "must be a head's host:port"),
        ("elsewhere://x", "must be a head's host:port"),
    ],
)
def test_run_with_an_address_that_nobody_answers_is_refused_at_once(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"RAY_ADDRESS: {reason}" in refusal(monkeypatch, RAY_ADDRESS=address)


def test_run_on_the_last_cluster_of_this_machine_says_where_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # this machine may run some
    assert "finds no cluster on this machine" in refusal(monkeypatch, RAY_ADDRESS="auto", RAY_TMPDIR=str(tmp_path))
    port = free_port()
    write(tmp_path / "ray" / "ray_current_cluster", f"127.0.0.1:{port}")
    text = refusal(monkeypatch, RAY_ADDRESS="auto", RAY_TMPDIR=str(tmp_path))
    assert "names no cluster that answers at " in text and f":{port}, where the last one of this machine was" in text


def test_run_at_a_port_where_something_else_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert "something else listens there" in refusal(monkeypatch, RAY_ADDRESS=address)


def test_folder_that_ray_cannot_use_is_named_with_the_variable_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    long = tmp_path / ("a" * 60)
    long.mkdir()
    assert "TMPDIR: is too long for Ray's sockets" in refusal(monkeypatch, TMPDIR=str(long))
    text = refusal(monkeypatch, RAY_TMPDIR=str(write(tmp_path / "file")), TMPDIR=str(tmp_path))
    assert "RAY_TMPDIR: must be a folder that Ray can write its session" in text
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert not ray.is_initialized()


# ---- jobs on a real head


PORT = processes.free_port()  # of the head, for its nodes


@pytest.fixture(scope="module")
def session() -> Iterator[str]:
    """The folder of the head's sockets and packages: short, for the paths of sockets end after 107 bytes."""
    folder = tempfile.mkdtemp(prefix="msft-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A head of this machine with ports and folders of its own: its dashboard's address, and its ``$RUNS``."""
    runs = tmp_path_factory.mktemp("cluster-runs")
    dashboard = free_port()
    ports = {"dashboard_port": dashboard, "dashboard_agent_listen_port": free_port()}
    options = node_options(port=PORT, ray_client_server_port=free_port(), **ports)
    options += ["--head", "--node-name=head", f"--temp-dir={session}"]
    process = start_session(start_ray, options, node_environment(runs), session)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        # Until it has noted its address, Ray gives its jobs that of any cluster of this machine, another test's too.
        wait_for(lambda: answers(address) and Path(session, "ray_current_cluster").exists(), 120)
        yield address, runs
    finally:
        process.terminate()
        process.join(3)
        end_session(process.pid)
        process.join()


@contextmanager
def second_node(address: str, runs: Path, *hidden: object) -> Iterator[int]:
    """Have the head's cluster another node, which does not see what is in some folders; yield its session's id."""
    options = node_options(dashboard_agent_listen_port=free_port())
    options += [f"--address=127.0.0.1:{PORT}", "--node-name=second"]
    process = start_hiding(hidden, start_ray, options, node_environment(runs), "/")
    try:
        wait_for(lambda: alive(address) == 2, 120)
        assert process.pid is not None
        yield process.pid
    finally:
        process.terminate()
        process.join(5)
        end_session(process.pid)
        process.join()
        wait_for(lambda: alive(address) == 1, 60)


def alive(address: str) -> int:
    """Return how many nodes of a cluster are alive."""
    with urllib.request.urlopen(f"{address}/nodes?view=summary", timeout=10) as answer:
        nodes = json.loads(answer.read())["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def answers(address: str) -> bool:
    """Whether the dashboard serves jobs: it does so some seconds after its first page."""
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
            return True
    except OSError:
        return False


def relative_sweep(tree: Path) -> Path:
    """Write the small sweep with one LoRA run and every path relative to the file."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora"}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
    path = small_sweep(tree, blocks=[block], storage={"root": "${RUNS}/small"}, measures=[])
    path.write_text(path.read_text().replace(f"{tree}/", ""))
    for task in (tree / "world/tasks").glob("*.yaml"):  # may name their data by absolute paths
        task.write_text(task.read_text().replace(f"{tree}/world/tasks/", ""))
    return path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sweep_submitted_from_elsewhere_runs_to_its_end(
    head: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, runs = head
    path = relative_sweep(tmp_path / "tree")
    write(tmp_path / "tree/.gitignore", "*.log\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    arguments = ["submit", str(path), "--address", address, "--working-dir", str(tmp_path / "tree")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"packaging {tmp_path / 'tree'}: " in result.output
    identifier = list_jobs(address)[-1].id
    assert f"submitted {identifier}; it goes on" in result.output

    # Another process, another folder, the address from the environment.
    code = "import sys; from massive_sft.scheduling.jobs import *; [print(t, end='') for t in job_logs(None, sys.argv[1], True)]"
    fresh = subprocess.run(
        [sys.executable, "-c", code, identifier],
        env={**os.environ, "RAY_ADDRESS": address},
        cwd="/tmp",
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = job_status(address, identifier)
    assert found.status == "SUCCEEDED", fresh.stdout + fresh.stderr
    assert "2 COMPLETE" in fresh.stdout
    assert (found.sweep, found.entrypoint) == ("small", "python -m massive_sft run sweep.yaml")
    records = Ledger.open(runs / "small", create=False).records()
    assert [record.status for record in records] == [Status.COMPLETE] * 2
    assert not list((tmp_path / "elsewhere").iterdir())

    shown = CliRunner().invoke(cli, ["job", identifier, "--address", address])
    assert shown.exit_code == 0
    assert f"{identifier}  SUCCEEDED  small" in shown.output
    logs = CliRunner().invoke(cli, ["job", identifier, "--logs", "--address", address])
    assert "2 COMPLETE" in logs.output
    with pytest.raises(InvalidInput, match=identifier):  # the known ones are listed
        job_status(address, "no-such-job")


MAIN = """
import json, os, signal, sys, time
def end(*_):
    time.sleep(5)
    print("wrote its checkpoint", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, end)
print(json.dumps({"arguments": sys.argv[1:], "files": sorted(os.listdir()), "environment": dict(os.environ)}), flush=True)
time.sleep(int(open("seconds").read()))
"""


# In the place of the module that looks for paths.
ANSWER = f"""
print({Answer(1, 0, []).to_line()!r})
"""


def own_package(root: Path, seconds: int) -> None:
    """Write a ``massive_sft`` into a tree that only tells what it was called with."""
    for name in ("__init__.py", "scheduling/__init__.py"):
        write(root / "massive_sft" / name, "")
    shutil.copy(end_request.__file__, root / "massive_sft/scheduling/")
    write(root / "massive_sft/__main__.py", MAIN)
    write(root / "massive_sft/scheduling/cluster_paths.py", ANSWER)
    write(root / "seconds", str(seconds))


@pytest.mark.slow
def test_job_sees_its_tree_first_and_nothing_of_this_environment(
    head: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = head
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "SOME_SETTING"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the address given wins
    path = sweep_file(tmp_path)
    own_package(tmp_path, seconds=0)
    said: list[str] = []
    identifier = submit_sweep(load_sweep(path), (), address, tmp_path, said.append).id
    asked = ["asking every node of the cluster for the paths that the sweep names"]
    asked += ["1 nodes see the storage root and all 0 paths"]
    assert said == [f"packaging {tmp_path}: {find_tree(tmp_path)}", *asked]
    wait_for(lambda: job_status(address, identifier).ended is not None, 60)
    with urllib.request.urlopen(f"{address}/api/jobs/{identifier}", timeout=10) as answer:
        details = answer.read().decode()
    with urllib.request.urlopen(f"{address}/api/jobs/{identifier}/logs", timeout=10) as answer:
        logs = json.loads(answer.read())["logs"]
    assert CANARY not in details + logs
    assert json.loads(details)["runtime_env"].keys() == {"working_dir"}
    told = json.loads(next(line for line in logs.splitlines() if line.startswith('{"arguments')))
    assert told["arguments"] == ["run", "sweeps/x.yaml"]
    assert told["files"] == ["data", "massive_sft", "models", "seconds", "sweeps", "tasks"]


class Forgets(BaseHTTPRequestHandler):
    """Passes everything on to a cluster, but the first answer to a job's submission, which is lost."""

    behind = ""
    lost: ClassVar[list[bytes]] = []

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        request = urllib.request.Request(self.behind + self.path, body, dict(self.headers), method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        if (
            self.command == "POST"
            and self.path == "/api/jobs/"
            and body
            and b"massive_sft run" in body
            and not self.lost
        ):
            self.lost.append(data)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.slow
def test_job_is_submitted_once_though_an_answer_is_lost_and_ends_where_it_can_go_on(
    head: tuple[str, Path], tmp_path: Path
) -> None:
    """The cluster's own stop would kill it after three seconds; its command needs five to end."""
    address, _ = head
    path = sweep_file(tmp_path)
    own_package(tmp_path, seconds=600)
    before = len(list_jobs(address))
    Forgets.behind, Forgets.lost = address, []
    with HTTPServer(("127.0.0.1", 0), Forgets) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        through = f"http://127.0.0.1:{server.server_port}"
        sent = submit_sweep(load_sweep(path), (), through, tmp_path, lambda _: None)
        server.shutdown()
    assert Forgets.lost and sent.is_new and sent.id.startswith("portable-") and sent.id.endswith("-1")
    wait_for(lambda: job_status(address, sent.id).status == "RUNNING", 60)
    wait_for(lambda: '{"arguments' in "".join(job_logs(address, sent.id)), 30)
    arguments = ["submit", str(path), "--address", address, "--working-dir", str(tmp_path)]
    again = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert f"it goes on already, as {sent.id}" in again.output
    assert len(list_jobs(address)) == before + 1

    stopped = CliRunner().invoke(cli, ["job", sent.id, "--stop", "--address", address], catch_exceptions=False)
    assert stopped.output.startswith("asked to end after the step or shard in hand"), stopped.output
    assert f"{sent.id}  FAILED" in stopped.output
    assert "wrote its checkpoint" in "".join(job_logs(address, sent.id))
    assert CliRunner().invoke(cli, ["job", sent.id, "--address", address]).exit_code == 75
    assert "it had ended before" in CliRunner().invoke(cli, ["job", sent.id, "--stop", "--address", address]).output

    renewed = submit_sweep(load_sweep(path), (), address, tmp_path, lambda _: None)
    assert renewed.is_new and renewed.id == sent.id[:-1] + "2"
    wait_for(lambda: job_status(address, renewed.id).status == "RUNNING", 60)
    killed = CliRunner().invoke(cli, ["job", renewed.id, "--stop", "--now", "--address", address])
    assert killed.output.startswith("stopping at once\n") and f"{renewed.id}  STOPPED" in killed.output
    assert CliRunner().invoke(cli, ["job", renewed.id, "--address", address]).exit_code == 1


def test_request_to_end_reaches_the_command_of_one_job_alone(tmp_path: Path) -> None:
    """A process that is started as Ray starts a job's command, and one of another job."""
    processes = {}
    for name in ("mine-1", "mine-12"):
        config = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": name}})
        processes[name] = subprocess.Popen(
            ["sleep", "60"], env={"RAY_JOB_CONFIG_JSON_ENV_VAR": config, "PATH": os.environ["PATH"]}
        )
    try:
        assert end_request.request_end("mine-1", {"RAY_JOB_STOP_WAIT_TIME_S": "600"}) == end_request.WAITS
        assert end_request.request_end("gone", {}) == end_request.NOT_FOUND
        assert end_request.request_end("mine-1", {"RAY_JOB_STOP_WAIT_TIME_S": "3"}) == end_request.ASKED
        assert processes["mine-1"].wait(10) == -signal.SIGTERM
        assert processes["mine-12"].poll() is None
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def shared_sweep(tree: Path, shared: Path, **changes: Any) -> Path:
    """Write a sweep file into ``tree`` whose every path is one of ``shared``, and what it names there.

    The model and the storage are named by a variable of the cluster, the rest by absolute paths; of the benchmark it
    is the folder of its data that is named, within its file.
    """
    for name in ("config.json", "tokenizer.json"):
        write(shared / "base" / name, "{}")
    write(shared / "base/model.safetensors", EMPTY_WEIGHTS)
    write(shared / "train.jsonl", '{"instruction": "a", "output": "b"}\n')
    write(shared / "quiz/test.jsonl", "{}\n")

    def change(content: dict[str, Any]) -> None:
        content["models"]["base"]["path"] = "${SHARED:-" + str(shared) + "}/base"
        content["datasets"]["own"]["path"] = str(shared / "train.jsonl")
        content["storage"]["root"] = str(shared / "runs")
        for name, value in changes.items():
            content[name].update(value)

    path = sweep_file(tree, change)
    for unused in ("models", "data"):
        shutil.rmtree(tree / unused)
    yaml_file(tree / "tasks/own.yaml", {"task": "own", "dataset_path": "json", "data_dir": str(shared / "quiz")})
    return path


@pytest.mark.slow
def test_paths_that_only_the_cluster_has_are_looked_for_there_and_allowed(
    head: tuple[str, Path], tmp_path: Path
) -> None:
    address, _ = head
    before = len(list_jobs(address))
    with Room(tmp_path / "shared", "1m") as client:  # which sees an empty folder there
        path = shared_sweep(tmp_path / "tree", tmp_path / "shared")
        code, told = client.command("submit", path, "--address", address, "--working-dir", tmp_path / "tree")
    assert code == 0, told
    assert "1 nodes see the storage root and all 7 paths" in told
    assert len(list_jobs(address)) == before + 1, "the job that looked is not listed"
    assert not (tmp_path / "shared/runs").exists() and not list((tmp_path / "shared").glob(".massive-sft*"))
    job_id = list_jobs(address)[-1].id
    wait_for(lambda: job_status(address, job_id).ended is not None, 120)  # the model is none, so it ends soon
    assert "there is no" not in "".join(job_logs(address, job_id))


@pytest.mark.slow
def test_every_path_that_a_node_lacks_is_named_with_the_node_and_nothing_is_started(
    head: tuple[str, Path], session: str, tmp_path: Path
) -> None:
    address, runs = head
    before = len(list_jobs(address))
    own = {"datasets": {"gone": {"path": "/shared/gone.jsonl", "format": "alpaca"}}}
    judge = {"name": "judge-1", "endpoint": "http://127.0.0.1:9/v1", "key": "JUDGE_KEY_OF_NOBODY"}
    judged = {"kind": "mt_bench", "questions": "/shared/gone.jsonl"}
    own["evaluation"] = {"judging": {"judges": [judge], "benchmarks": [judged]}}
    path = shared_sweep(tmp_path / "tree", tmp_path / "shared", **own, models={"unset": {"path": "${UNSET}/base"}})
    with second_node(address, runs, session, tmp_path / "shared"), pytest.raises(InvalidInput) as caught:
        submit_sweep(load_sweep(path), (), address, tmp_path / "tree", lambda _: None)
    told = {
        (problem.place.removeprefix(f"{path}: "), str(problem.value)): problem.rule for problem in caught.value.problems
    }
    shared = tmp_path / "shared"
    only_second = {
        ("models.base.path", "${SHARED:-" + str(shared) + "}/base"),
        ("datasets.own.path", str(shared / "train.jsonl")),
        ("evaluation.tasks[0].path: own.yaml", str(shared / "quiz")),
        ("storage.root", str(shared / "runs")),
    }
    on_both = {("datasets.gone.path", "/shared/gone.jsonl"), ("models.unset.path", "${UNSET}/base")}
    on_both |= {("evaluation.judging.judges[0].key", "JUDGE_KEY_OF_NOBODY")}
    assert told.keys() == only_second | on_both
    rule = told["evaluation.judging.judges[0].key", "JUDGE_KEY_OF_NOBODY"]
    assert "must be set to the key for Ray's workers, and is not on any node" in rule
    assert all("second (" in told[key] and "head (" not in told[key] for key in only_second)
    gone = told["datasets.gone.path", "/shared/gone.jsonl"]
    assert "there is no such file or folder on any node: head (" in gone and "second (" in gone
    assert "UNSET, which is not set" in told["models.unset.path", "${UNSET}/base"]
    hint = "this machine has it: put it where all nodes see it, or package it and write ../../shared/train.jsonl"
    assert hint in told["datasets.own.path", str(shared / "train.jsonl")]
    assert len(list_jobs(address)) == before


@pytest.mark.slow
def test_check_names_the_node_that_lacks_a_path_and_asks_no_more_of_one_that_is_gone(
    head: tuple[str, Path], session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is packaged, relative paths are asked for as well."""
    address, runs = head
    path = relative_sweep(tmp_path / "shared")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{PORT}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RUNS", str(tmp_path))
    with second_node(address, runs, session, tmp_path / "shared") as node:
        with pytest.raises(InvalidInput) as caught:
            CliRunner().invoke(app, ["check", str(path)], catch_exceptions=False)
        (raylet,) = (one.pid for one in processes.titled("raylet/raylet ") if os.getsid(one.pid) == node)
        os.kill(raylet, signal.SIGSTOP)  # so that it takes no task
        wait = ray.wait

        def leave(*arguments: Any, **options: Any) -> Any:
            with suppress(ProcessLookupError):
                os.kill(raylet, signal.SIGKILL)
            return wait(*arguments, **options)

        monkeypatch.setattr(ray, "wait", leave)
        passed = CliRunner().invoke(app, ["check", str(path)], catch_exceptions=False)
        assert passed.exit_code == 0, passed.output
    told = {problem.place.removeprefix(f"{path}: "): problem.rule for problem in caught.value.problems}
    assert {"models.llama.path", "datasets.facts.path"} <= told.keys() and "storage.root" not in told
    assert all("there is no such file or folder on second (" in rule for rule in told.values()), told


@pytest.mark.slow
def test_storage_that_is_a_folder_of_the_client_alone_is_refused(head: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = head
    with Room(tmp_path / "home/me", "1m") as client:
        path = sweep_file(
            tmp_path / "tree", lambda content: content["storage"].update(root=f"{tmp_path}/home/me/a/runs")
        )
        code, told = client.command("submit", path, "--address", address, "--working-dir", tmp_path / "tree")
    assert code == 2
    assert f"storage.root: there is no folder {tmp_path}/home/me/a on the cluster" in " ".join(told.split())


@pytest.mark.slow
def test_check_on_a_cluster_passes_what_it_can_hold_and_names_what_it_cannot(
    head: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{PORT}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # the cluster has two
    path = relative_sweep(tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path))
    for rules, word in (([{"workers": 2, "zero": 2}], "ready"), ([{"gpus": 1}], "gpus")):
        overlay = yaml_file(tmp_path / "resources.yaml", {"resources": rules})
        done = CliRunner().invoke(app, ["check", str(path), "--overlay", str(overlay)])
        assert not ray.is_initialized()
        problems = done.exception.problems if isinstance(done.exception, InvalidInput) else []
        assert len(problems) == (word == "gpus"), problems
        assert word.upper() in (done.output + "".join(map(str, problems))).upper()


@pytest.mark.slow
def test_job_that_ray_sends_to_another_cluster_says_so(head: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{PORT}")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "small-1"}}))
    with pytest.raises(ClusterLost, match="gave the job small-1 the address of another cluster"), connected():
        pass
    assert not ray.is_initialized()


def test_cluster_that_has_just_started_is_given_time_until_it_runs_jobs() -> None:
    class JustStarted:
        answers: ClassVar = ["No available agent to submit job, please try again later.", "", "the disk is full"]

        def submit_job(self, **job: str) -> str:
            if refusal := self.answers.pop(0):
                raise RuntimeError(f"Request failed with status code 500: {refusal}")
            return job["entrypoint"]

    client: Any = JustStarted()
    assert submit_job(client, 0, entrypoint="true") == "true"
    with pytest.raises(RuntimeError, match="the disk is full"):
        submit_job(client, 0, entrypoint="true")


def test_ray_that_comes_too_late_on_a_busy_machine_is_started_again_and_then_left_for_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def late(**options: object) -> None:
        told.append("asked")
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(ClusterLost, match="less busy") as lost, connected():
        pass
    assert (len(told), lost.value.exit_code) == (cluster.STARTS, 75)
