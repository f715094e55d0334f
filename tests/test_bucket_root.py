"""A ledger whose root is a bucket: the same results, from any machine, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import s3_server
from commands import end, start
from s3_server import Request, S3Server, lose_first_answers, s3
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.bucket_root import POINTER, BucketRoot
from massive_sft.ledger.manifest import seal_folder, verify_folder
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.storage import Folder, Root
from massive_sft.ledger.store import Ledger
from massive_sft.ledger.superseded import remove_superseded
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.inline import run_inline
from massive_sft.study.results import load
from massive_sft.sweep.load import load_sweep
from massive_sft.training.checkpoints.disk import CheckpointFacts, CheckpointStore

pytestmark = pytest.mark.timeout(240)
__all__ = ["s3"]  # a fixture
WHEN = "2026-01-31T12:00:00+00:00"
ROOT = BucketRoot(s3_server.BUCKET, "a/study")
BLOCK = {"name": "A", "model": "all", "mixture": "one", "schedule": "constant", "horizon": 2, "snapshots": [1, 2]}


def sweep_at(folder: Path, root: object, **storage: object) -> Path:
    return small_sweep(folder, blocks=[BLOCK | {"setting": "lora"}], storage={"root": str(root)} | storage)


def planned(path: Path) -> Plan:
    return make_plan(load_sweep(path), Ledger.states)


def facts(plan: Plan) -> dict[str, object]:
    records = plan.open_ledger(create=False).records()
    return {record.cell: (record.status, record.scores, record.measures, record.counts) for record in records}


# The contract of a root, for a folder and for a bucket


@pytest.fixture(params=["folder", "bucket", "bucket without answers"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "folder":
        return Folder(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3")
    server.loses = lose_first_answers if request.param != "bucket" else server.loses
    return ROOT


def filled(folder: Path, text: str) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text(text)
    seal_folder(folder)
    return folder


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "elsewhere") -> None:
    """Go on as another machine."""
    monkeypatch.setenv("MASSIVE_SFT_CACHE", str(tmp_path / name))


def test_place_is_published_whole_and_once(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not root.exists() and not root.fetch("a/b").exists()
    assert root.upload(filled(root.local("work/1"), "first"), "a/b")
    assert not root.upload(filled(root.local("work/2"), "second"), "a/b")
    assert root.local("work/2").is_dir() and not root.local("work/1").exists()
    assert root.exists() and [item.name for item in root.list("a")] == ["b"]
    for machine in ("elsewhere", "elsewhere", "and there"):
        assert verify_folder(root.fetch("a/b")) and (root.fetch("a/b") / "deep" / "file").read_text() == "first"
        assert root.fetch_file("a/b/manifest.json").is_file() and not root.fetch_file("a/c").exists()
        elsewhere(monkeypatch, tmp_path, machine)
    assert root.leftovers() == []


def test_place_that_was_taken_away_may_be_published_anew(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.upload(filled(root.local("work/1"), "first"), "a/b")
    if not isinstance(root, Folder):
        here = os.environ["MASSIVE_SFT_CACHE"]
        elsewhere(monkeypatch, tmp_path)
        root.fetch("a/b")
        monkeypatch.setenv("MASSIVE_SFT_CACHE", here)
    root.set_aside("a/b", root.local("work/aside"))
    assert (root.local("work/aside") / "deep" / "file").read_text() == "first"
    assert not root.fetch("a/b").exists() and not root.list("a")
    with pytest.raises(FileNotFoundError):
        root.set_aside("a/b", root.local("work/again"))
    root.upload(filled(root.local("work/2"), "second"), "a/b")
    elsewhere(monkeypatch, tmp_path)  # which had the first
    assert (root.fetch("a/b") / "deep" / "file").read_text() == "second"
    root.delete("a")
    assert not root.fetch("a/b").exists() and not root.exists("a/b/published.json")


def test_pushed_folder_stays_and_is_found_elsewhere(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(root.local("state/1"), "state")
    root.push("state/1")
    root.push("state/1")
    assert root.local("state/1").is_dir()
    elsewhere(monkeypatch, tmp_path)
    assert (root.fetch("state/1") / "deep" / "file").read_text() == "state"


def test_upload_that_was_killed_is_a_leftover_until_it_is_deleted(s3: S3Server) -> None:
    ROOT.upload(filled(ROOT.local("work/1"), "first"), "a/b")
    s3.refuses = lambda request: (403, "AccessDenied") if request.method == "PUT" and POINTER in request.path else None
    with pytest.raises(PermissionError):
        ROOT.upload(filled(ROOT.local("work/2"), "second"), "a/c")
    s3.refuses = lambda request: None
    (left,) = ROOT.leftovers()
    assert left.startswith("a/.c.") and [item.name for item in ROOT.list("a")] == ["b"]
    ROOT.delete(left)
    assert ROOT.leftovers() == [] and verify_folder(ROOT.fetch("a/b"))


# Sweeps


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("local")
    path = sweep_at(folder, folder / "ledger")
    run_inline(planned(path), lambda event: None)
    return facts(planned(path))


def killing(process: BaseProcess, pattern: str, skip: int = 0) -> Callable[[Request], tuple[int, str] | None]:
    """Return what kills a process that asks for what fits a pattern, before the store has done it."""
    left = [skip + 1]

    def refuse(request: Request) -> tuple[int, str] | None:
        left[0] -= re.search(pattern, f"{request.method} {request.path}") is not None
        if left[0] > 0 or process.pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return 500, "Killed"

    return refuse


KILLED = [
    (r"PUT .*/resume/latest\.json", 1),
    (r"PUT .*/snapshots/epoch-1/published\.json", 0),
    (r"PUT .*/training/attempt-\d/published\.json", 0),
]
"""Where a process dies, each on another machine; the next one goes on from there."""


def write_checkpoint(attempt: Attempt, step: int) -> Path:
    """Commit a checkpoint, with a snapshot that is not published and the losses so far; return its folder."""
    store = CheckpointStore(attempt.storage, attempt.claim)
    snapshot = attempt.folder / "snapshots" / "epoch-1"
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "snapshot.json").write_text('{"files": {}}')
    (attempt.folder / "losses.jsonl").write_text("")
    name = store.begin(step, "abc")
    (store.folder / name / "state" / "optimizer").write_text("large")
    facts = CheckpointFacts(attempt.number, step, "", {}, {}, {})
    store.commit(name, facts, attempt.folder / "losses.jsonl", {1: snapshot})
    return store.folder / name


def test_machine_keeps_of_lost_attempts_nothing_but_the_checkpoint_that_counts_and_curves(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, tmp_path, "a")
    ledger, trajectory = Ledger.open(ROOT), "0123456789abcdef"
    home = ledger.trajectory_dir(trajectory)
    lost = ledger.begin_attempt(trajectory, "lane")
    assert lost is not None
    checkpoint = write_checkpoint(lost, 100)
    assert remove_superseded(ROOT) == []  # it may go on
    lost.release()
    assert remove_superseded(ROOT) == [lost.folder / "snapshots"]
    assert checkpoint.is_dir() and (lost.folder / "losses.jsonl").is_file()
    elsewhere(monkeypatch, tmp_path, "b")
    with ledger.begin_attempt(trajectory, "lane") as attempt:
        later = write_checkpoint(attempt, 200)
        assert remove_superseded(ROOT) == []
        elsewhere(monkeypatch, tmp_path, "a")
        assert remove_superseded(ROOT) == [checkpoint]
    elsewhere(monkeypatch, tmp_path, "b")
    remove_superseded(ROOT)
    assert later.is_dir()
    assert remove_superseded(Folder(home)) == []


def test_sweep_killed_on_machine_after_machine_gives_the_same_results(
    s3: S3Server, local: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep_at(tmp_path, ROOT, resume_every=0)
    assert not ROOT.exists() and {cell.status for cell in planned(path).cells} == {Status.WAITING}
    for machine, (pattern, skip) in enumerate(KILLED):
        monkeypatch.setenv("MASSIVE_SFT_CACHE", str(tmp_path / f"machine-{machine}"))
        process = start("run", path, "--inline", out=tmp_path / f"out-{machine}")
        s3.refuses = killing(process, pattern, skip)
        assert end(process) == -signal.SIGKILL, (pattern, (tmp_path / f"out-{machine}").read_text())
    s3.refuses = lambda request: None
    monkeypatch.setenv("MASSIVE_SFT_CACHE", str(tmp_path / "last machine"))
    run_inline(planned(path), lambda event: None)
    assert facts(planned(path)) == local
    records = [*planned(path).open_ledger(create=False).records()]
    resumed = [record for record in records if record.training.get("resumed")]
    assert resumed and all(record.training["resumed"][0]["exact"] is not False for record in resumed)  # type: ignore[index]
    names = ROOT.sizes()
    weights = {tuple(name.split("/")[1:3]) for name in names if name.startswith("weights/")}
    snapshots = {(run.trajectory.id, f"epoch-{epoch}") for run in planned(path).runs for epoch in (1, 2)}
    assert weights == snapshots
    assert ROOT.leftovers() == []

    loaded = load(str(ROOT))
    assert loaded.records.keys() == local.keys() and set(loaded.cells["cell"]) == set(local)
    assert set(loaded.scores["cell"]) == set(local)

    (run,) = planned(path).runs
    place = ROOT.at(f"trajectories/{run.trajectory.id}")
    before = {name for name in ROOT.sizes() if not name.startswith(("index/", "trajectories/"))}
    ROOT.put(f"weights/{run.trajectory.id}/epoch-1/0123456789abcdef/model.safetensors", b"not finished")
    place.put("training/.epoch-1.0123456789abcdef/losses.jsonl", b"nor this")
    filled(place.local("attempts/1/epoch-1-0123"), "of a machine that is gone")
    place.push("attempts/1/epoch-1-0123")
    elsewhere(monkeypatch, tmp_path)
    shown = CliRunner().invoke(app, ["gc", str(path), "--dry-run", "--json"])
    assert {item["kind"] for item in json.loads(shown.output)["waste"]} == {"weights", "upload", "attempt"}, (
        shown.output
    )
    assert CliRunner().invoke(app, ["gc", str(path)]).exit_code == 0
    assert "nothing to remove" in CliRunner().invoke(app, ["gc", str(path)]).output
    assert {name for name in ROOT.sizes() if not name.startswith(("index/", "trajectories/"))} == before
    assert facts(planned(path)) == local

    done = CliRunner().invoke(app, ["invalidate", str(path), "--where", "method=lora", "--reason", "a test"])
    assert done.exit_code == 0, done.output
    assert [cell.status for cell in planned(path).cells].count(Status.FAILED) == 2
    assert not place.exists("training/attempt-1/published.json") and verify_folder(
        place.fetch(f"invalidated/1/snapshots/{place.list('invalidated/1/snapshots')[0].name}")
    )
    elsewhere(monkeypatch, tmp_path)
    run_inline(planned(path), lambda event: None)
    assert facts(planned(path)) == local
    assert {name for name in names if name.startswith("weights/")} < ROOT.sizes().keys(), "those set aside stay"
    shown = CliRunner().invoke(app, ["gc", str(path), "--dry-run", "--json"])
    assert {item["kind"] for item in json.loads(shown.output)["waste"]} == {"invalidated"}
    assert CliRunner().invoke(app, ["gc", str(path)]).exit_code == 0
    assert "nothing to remove" in CliRunner().invoke(app, ["gc", str(path)]).output
    left = {name for name in ROOT.sizes() if name.startswith("weights/")}
    assert len(left) == len(weights) * 4 and not left & names.keys()
    assert facts(planned(path)) == local


def test_plan_and_rerun_of_a_far_ledger_ask_a_few_times_however_many_cells_there_are(
    s3: S3Server, tmp_path: Path
) -> None:
    """A store far away takes a tenth of a second for each request."""
    block = BLOCK | {"setting": "lora", "override": {"seed": list(range(20))}}
    path = small_sweep(tmp_path, blocks=[block], storage={"root": str(ROOT)}, measures=[], evaluation={"tasks": []})
    plan = planned(path)
    ledger = Ledger.open(plan.storage)
    facts = {"trajectory": None, "status": Status.COMPLETE, "attempt": 1, "provenance": {}}
    facts |= {"created": WHEN, "finished": WHEN}
    for item in plan.cells:
        ledger.write_record(Record(cell=item.cell.id, coordinates=item.cell.coordinates._asdict(), **facts))
    cells: dict[str, str | None] = {item.cell.id: None for item in plan.cells}
    Ledger(plan.storage).states(cells)  # which tells the index what the writer had not told it yet
    for read in (ledger.states, Ledger(plan.storage).states, Ledger(plan.storage).listed_states):
        s3.asked.clear()
        assert {state.status for state in read(cells).values()} == {Status.COMPLETE}
        assert len(s3.asked) < 10 < 40 < len(cells), s3.asked
