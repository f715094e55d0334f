"""A disk that is full, read-only, or that changed or lost bytes: said in a sentence, and nothing wrong is trusted."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Room, command
from disturbed import (
    KEEP,
    STARTED,
    copied,
    identities,
    outcome,
    record_path,
    records,
    sweep_at,
    tracked,
    trainings,
    undisturbed,
)

from massive_sft.ledger.store import Ledger
from massive_sft.tracking.run_fields import checksum

pytestmark = pytest.mark.timeout(600)

Damage = Callable[[bytes], bytes]


def flipped(data: bytes) -> bytes:
    """Change one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(ledger: Path, pattern: str, damage: Damage) -> Path:
    """Damage the only file of a ledger that fits a pattern."""
    (path,) = ledger.glob(pattern)
    path.write_bytes(damage(path.read_bytes()))
    return path


def run(sweep: Path, *more: str, expected: int = 0) -> str:
    """Run the sweep; return what it printed, without line ends."""
    code, printed = command("run", sweep, "--inline", *more, out=sweep.parent / "out")
    assert code == expected, printed
    assert "Traceback" not in printed
    return printed.replace("\n", "")


def cell_of(name: str) -> str:
    return records(undisturbed())[name].cell


def weights_of(ledger: Path, cell: str) -> str:
    """Return the id of a cell's weights, under which its scores are cached."""
    (shard,) = (ledger / "cells" / cell / "responses").glob("*/many/00000.jsonl.gz")
    return str(json.loads(gzip.decompress(shard.read_bytes()).partition(b"\n")[0])["weights"])


# Bytes that changed


@pytest.mark.parametrize("damage", [flipped, cut])
def test_damaged_caches_answers_and_records_are_named_and_made_again(tmp_path: Path, damage: Damage) -> None:
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    full, lora = cell_of("full-1"), cell_of("lora-1")
    record_path(ledger, full).unlink()
    shutil.rmtree(ledger / "cache" / "scores" / weights_of(ledger, full))
    requests = next((ledger / "cache" / "requests").glob("*/many.jsonl.gz")).parent.name
    many = next((ledger / "cells" / lora / "responses").glob("*/many")).parent.name
    hurt = [
        damaged(ledger, pattern, damage)
        for pattern in (
            "cache/tokens/*.npz",
            f"cache/requests/{requests}/many.jsonl.gz",
            "cache/perplexity/*/perplexity.json",
            f"cache/scores/{weights_of(ledger, lora)}/{many}.json",
            f"cells/{full}/responses/*/many/00002.jsonl.gz",
            f"cells/{full}/cell.json",
            f"records/*/{lora}.record-*.json",
        )
    ]
    before = identities(ledger, "records/*/*.json") | identities(ledger, "cells/*/responses/**/*.gz")
    printed = run(sweep)
    for path in hurt:
        assert str(path) in printed, path
        if path.parents[1].name != "records":
            assert path.read_bytes() == (undisturbed() / path.relative_to(tmp_path)).read_bytes(), path
    assert outcome(tmp_path) == outcome(undisturbed())
    assert trainings(tmp_path) == trainings(undisturbed())
    now = identities(ledger, "records/*/*.json") | identities(ledger, "cells/*/responses/**/*.gz")
    assert {path for path in now if now[path] != before.get(path)} == {
        record_path(ledger, full),
        record_path(ledger, lora),
        hurt[4],
    }


@pytest.mark.parametrize("damage", [flipped, cut])
def test_damaged_descriptions_of_caches_are_named_and_made_again(tmp_path: Path, damage: Damage) -> None:
    """What says how to read a cache: counts of tokens, manifest of requests, values behind the scores."""
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    lora = cell_of("lora-1")
    record_path(ledger, lora).unlink()
    requests = next((ledger / "cache" / "requests").glob("*/many.jsonl.gz")).parent.name
    many = next((ledger / "cells" / lora / "responses").glob("*/many")).parent.name
    hurt = [
        damaged(ledger, "cache/tokens/*.json", damage),
        damaged(ledger, f"cache/requests/{requests}/manifest.json", damage),
        damaged(ledger, f"cache/scores/{weights_of(ledger, lora)}/{many}.parquet", damage),
    ]
    printed = run(sweep)
    for path in hurt:
        assert str(path) in printed, path
        assert path.read_bytes() == (undisturbed() / path.relative_to(tmp_path)).read_bytes(), path
    assert outcome(tmp_path) == outcome(undisturbed())


@pytest.mark.parametrize(("name", "damage"), [("losses.jsonl", cut), ("manifest.json", flipped)])
def test_damaged_training_is_trained_again(tmp_path: Path, name: str, damage: Damage) -> None:
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    trajectory = records(undisturbed())["lora-1"].trajectory
    record_path(ledger, cell_of("lora-1")).unlink()
    path = damaged(ledger, f"trajectories/{trajectory}/training/attempt-1/{name}", damage)
    spec = damaged(ledger, f"trajectories/{trajectory}/spec.json", damage)
    printed = run(sweep)
    assert str(path.parent) in printed
    assert str(spec) in printed
    assert spec.read_bytes() == (undisturbed() / spec.relative_to(tmp_path)).read_bytes()
    assert outcome(tmp_path) == outcome(undisturbed())
    assert trainings(tmp_path) == sorted([*trainings(undisturbed()), f"{trajectory}/attempt-2"])


@pytest.mark.parametrize(("name", "damage"), [("adapter_model.safetensors", flipped), ("manifest.json", cut)])
def test_damaged_snapshot_is_said_and_trained_again_only_when_asked(tmp_path: Path, name: str, damage: Damage) -> None:
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    record_path(ledger, cell_of("lora-1")).unlink()
    shutil.rmtree(ledger / "cache" / "scores")
    trajectory = records(undisturbed())["lora-1"].trajectory
    path = damaged(ledger, f"trajectories/{trajectory}/snapshots/epoch-1/{name}", damage)
    printed = run(sweep, expected=1)
    assert str(path.parent) in printed
    missing = records(tmp_path)["lora-1"].missing
    assert "does not match its checksums; run with --retrain" in missing["many-0shot"]
    run(sweep, "--retrain")
    assert outcome(tmp_path) == outcome(undisturbed())
    assert trainings(tmp_path) == sorted([*trainings(undisturbed()), f"{trajectory}/attempt-3"])


def test_damaged_index_and_lease_change_nothing(tmp_path: Path) -> None:
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    for index in (ledger / "index").iterdir():
        index.write_bytes(flipped(index.read_bytes()))
    assert run(sweep).endswith("nothing to do: 3 COMPLETE")
    for name in ("full-1", "lora-1"):
        record_path(ledger, cell_of(name)).unlink()
    for lease in [*ledger.glob("trajectories/*/lease/*"), *ledger.glob("cells/*/lease/*")]:
        lease.write_bytes(flipped(lease.read_bytes()))
    run(sweep)
    assert outcome(tmp_path) == outcome(undisturbed())
    assert trainings(tmp_path) == trainings(undisturbed())


@pytest.mark.parametrize("content", ['{"schema": ', '{"sch%ma": 1}', '{"schema": 0}'])
def test_damaged_head_of_the_ledger_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    sweep = copied(tmp_path)
    (tmp_path / "ledger" / "ledger.json").write_text(content)
    printed = run(sweep, expected=1)
    assert 'ledger.json: states no schema; with a ledger around it, replace it by {"schema": 3}' in printed


def test_damaged_files_of_complete_cells_are_in_the_report_and_not_in_the_tracker(tmp_path: Path) -> None:
    sweep, ledger = copied(tmp_path), tmp_path / "ledger"
    full = cell_of("full-1")
    trajectory = records(undisturbed())["full-1"].trajectory
    hurt = [
        damaged(ledger, f"cells/{full}/layers.parquet", flipped),
        damaged(ledger, f"trajectories/{trajectory}/training/attempt-1/losses.jsonl", flipped),
    ]
    code, printed = command("report", sweep, out=tmp_path / "out")
    assert code == 0, printed
    page = (ledger / "sweeps" / "small" / "report" / "report.html").read_text()
    for path in hurt:
        assert str(path) in re.sub("<wbr>", "", page)
    code, printed = command("mirror", sweep, out=tmp_path / "out")
    assert code == 0, printed
    assert str(hurt[0]) in printed.replace("\n", "")
    assert str(hurt[1].parent) in printed.replace("\n", "")
    found = Ledger.open(ledger, create=False).records()
    assert tracked(f"sqlite:///{ledger}/mlflow.db", "small") == {record.cell: checksum(record) for record in found}
    assert len(list(ledger.glob("mlflow-artifacts/**/record.json"))) == 3
    assert len(list(ledger.glob("mlflow-artifacts/**/layers.parquet"))) == 1


# A full disk, a read-only one


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Room(tmp_path_factory.mktemp("disk") / "room", "100m") as room:
        yield room


# In the order in which a run comes to them: what is about to be written when the last byte is gone.
FULL_AT = {
    "tokens": r"cache/tokens/",
    "tracker": r"mlflow\.db",
    "answers": r"cells/{base}/responses/.*/many/.*00002",
    "record": r"records/../\.?{base}\.record-",
    "losses": r"losses\.jsonl",
    "snapshot": r"\.epoch-1\.partial$",
    "training": r"training\.json",
    "layers": r"layers\.parquet",
    "index": r"ledger/index/",
    "artifacts": r"mlflow-artifacts/.*record\.json",
}


def test_full_disk_ends_every_phase_with_a_sentence_and_what_is_done_stays(room: Room, tmp_path: Path) -> None:
    sweep = sweep_at(room.seen / "full", storage={"root": str(room.folder / "full" / "ledger")} | KEEP)
    sweep = room.folder / "full" / sweep.name
    base, trajectory = cell_of("none-0"), records(undisturbed())["full-1"].trajectory
    for phase, pattern in FULL_AT.items():
        full_at = pattern.format(base=base, trajectory=trajectory)
        code, printed = room.command("run", sweep, "--inline", full_at=full_at)
        assert code in (1, 2), (phase, printed)
        assert "Traceback" not in printed, (phase, printed)
        assert re.search("No space left|disk is full|disk I/O error", printed), (phase, printed)
        if (room.seen / "full" / "ledger" / "ledger.json").exists():
            records(room.seen / "full")  # sound, all of them
    code, printed = room.command("run", sweep, "--inline")
    assert code == 0, printed
    assert outcome(room.seen / "full") == outcome(undisturbed())
    found = Ledger.open(room.seen / "full" / "ledger", create=False).records()
    shutil.copy(room.seen / "full" / "ledger" / "mlflow.db", tmp_path)  # SQLite would look for it outside the room
    shown = tracked(f"sqlite:///{tmp_path}/mlflow.db", "small")
    assert shown == {record.cell: checksum(record) for record in found}


@pytest.mark.long
def test_full_disk_ends_a_run_on_ray_with_a_sentence(room: Room) -> None:
    """Full from when the driver mirrors the first record: a lane trains and a scorer scores at that time."""
    sweep_at(room.seen / "ray", storage={"root": str(room.folder / "ray" / "ledger")} | KEEP)
    sweep = room.folder / "ray" / "small.yaml"
    code, printed = room.command("run", sweep, "--ray", full_at=FULL_AT["artifacts"])
    assert (code, "Traceback" in printed) == (1, False), printed
    assert printed.rstrip().endswith("No space left on device; make room, then run the same command to go on"), printed
    code, printed = room.command("run", sweep, "--inline")
    assert code == 0, printed
    assert outcome(room.seen / "ray") == outcome(undisturbed())


def test_read_only_root_is_refused_before_training_and_shows_what_it_has(room: Room) -> None:
    shutil.copytree(undisturbed() / "ledger", room.seen / "fixed" / "ledger")
    shutil.rmtree(room.seen / "fixed" / "ledger" / "index")
    sweep_at(room.seen / "fixed", storage={"root": str(room.folder / "fixed" / "ledger")})
    sweep = room.folder / "fixed" / "small.yaml"
    record_path(room.seen / "fixed" / "ledger", cell_of("lora-1")).unlink()
    room.mount("ro")
    try:
        code, printed = room.command("run", sweep, "--inline")
        assert (code, STARTED.findall(printed)) == (2, []), printed
        assert "storage.root: must be a folder that can be written" in printed
        code, printed = room.command("status", sweep, "--json")
        assert code == 0, printed
        assert sorted(row["status"] for row in json.loads(printed)) == ["COMPLETE", "COMPLETE", "WAITING"]
        code, printed = room.command("show", cell_of("full-1"), "--sweep", sweep)
        assert (code, "layer_change" in printed) == (0, True), printed
        code, printed = room.command("report", sweep)
        assert (code, "Read-only file system): name another folder, --out DIR" in printed) == (2, True), printed
        code, printed = room.command("inspect", sweep, "--task", "facts_mc", "-n", 1)
        assert (code, "right: " in printed) == (0, True), printed
        out = room.folder.with_name("report")
        code, printed = room.command("report", sweep, "--out", out)
        assert (code, (out / "report.html").is_file()) == (0, True), printed
    finally:
        room.mount("rw")
