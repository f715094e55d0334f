"""A sweep whose snapshots lie in an object store: the same results, and nothing left behind where or when it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import s3_server
from commands import Fault, command, kill
from s3_server import S3Server, denied, expired_after, s3
from small_sweep import small_sweep
from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import InvalidInput
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger import bucket
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import Plan, make_plan
from massive_sft.running.check.snapshot_store import snapshot_store_problems
from massive_sft.running.inline import run_inline
from massive_sft.sweep.load import load_sweep

pytestmark = pytest.mark.timeout(240)
__all__ = ["s3"]  # a fixture
ADDRESS = f"s3://{s3_server.BUCKET}/a/study"
BLOCK = {"name": "A", "model": "all", "mixture": "one", "schedule": "constant", "horizon": 2, "snapshots": [1, 2]}


def sweep_at(folder: Path, settings: list[str], **storage: object) -> Path:
    storage = {"root": str(folder / "ledger"), "keep_snapshots": {"full": "last", "lora": "all"}} | storage
    return small_sweep(folder, blocks=[BLOCK | {"setting": settings}], storage=storage)


def planned(path: Path) -> Plan:
    return make_plan(load_sweep(path))


def facts(root: Path) -> dict[str, object]:
    """Return what must be equal wherever snapshots lie, by cell."""
    records = Ledger.open(root, create=False).records()
    return {record.cell: (record.status, record.scores, record.measures, record.counts) for record in records}


def weights_in_bucket() -> list[str]:
    return sorted(name for name in Bucket(s3_server.BUCKET).sizes() if name.endswith(".safetensors"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep whose snapshots lie under its root."""
    folder = tmp_path_factory.mktemp("local")
    run_inline(planned(sweep_at(folder, ["full", "lora"])), lambda event: None)
    return folder


def test_sweep_gives_the_same_results_and_every_verb_finds_its_snapshots(
    s3: S3Server, local: Path, tmp_path: Path
) -> None:
    path = sweep_at(tmp_path, ["full", "lora"], snapshots=ADDRESS)
    plan, root = planned(path), tmp_path / "ledger"
    assert list(snapshot_store_problems(plan)) == []
    assert not Bucket(s3_server.BUCKET).sizes(), "check leaves nothing"
    run_inline(plan, lambda event: None)

    assert facts(root) == facts(local / "ledger")
    assert {status for status, *_ in facts(root).values()} == {Status.COMPLETE}  # type: ignore[misc]
    assert not list((root / "trajectories").rglob("*.safetensors"))
    kept = {f"{run.trajectory.id}/epoch-{epoch}" for run in plan.runs for epoch in (1, 2)}
    (dropped,) = (run.trajectory.id for run in plan.runs if run.trajectory.recipe.setting.method == "full")
    assert {"/".join(name.split("/")[2:4]) for name in weights_in_bucket()} == kept - {f"{dropped}/epoch-1"}
    assert not any(b"canary" in path.read_bytes() for path in root.rglob("*") if path.is_file())

    cell = next(
        cell.cell for run in plan.runs for cell in run.cells if run.trajectory.id == dropped and cell.cell.epoch == 2
    )
    done = CliRunner().invoke(app, ["export", cell.id, str(tmp_path / "model"), "--sweep", str(path)])
    assert done.exit_code == 0, done.output
    (own,) = (local / "ledger" / "trajectories" / dropped).rglob("model.safetensors")
    assert hash_file(tmp_path / "model" / "model.safetensors") == hash_file(own)

    assert all(cell.is_done for cell in planned(path).cells)
    collected = CliRunner().invoke(app, ["gc", str(path)])
    assert "nothing to remove" in collected.output, collected.output


@pytest.mark.parametrize(
    "place", [r"/epoch-1-[0-9a-f]{8}/stored\.json$", r"/snapshots/epoch-1$", r"/training/epoch-1$"]
)
def test_killed_upload_is_made_again_and_what_it_left_is_removed(s3: S3Server, tmp_path: Path, place: str) -> None:
    """Before anything is uploaded, before it counts, and before its training does."""
    path = sweep_at(tmp_path, ["lora"], snapshots=ADDRESS)
    code, _ = command("run", path, "--inline", out=tmp_path / "out", fault=Fault(place, kill))
    assert code == -signal.SIGKILL
    collected = CliRunner().invoke(app, ["gc", str(path)])
    assert collected.exit_code == 0, collected.output
    assert len(weights_in_bucket()) == place.startswith("/training")  # published, so it stays
    run_inline(planned(path), lambda event: None)
    assert all(cell.is_done for cell in planned(path).cells)
    assert len(weights_in_bucket()) == 2


def test_credentials_that_expire_cost_nothing_that_was_done(s3: S3Server, local: Path, tmp_path: Path) -> None:
    path, root = sweep_at(tmp_path, ["lora"], snapshots=ADDRESS, resume_every=0), tmp_path / "ledger"
    s3.refuses = expired_after(6)
    run_inline(planned(path), lambda event: None)
    failed = [record for record in Ledger.open(root, create=False).records() if record.status is Status.FAILED]
    assert failed and all("The provided token has expired" in str(record.error) for record in failed)
    assert not any("canary" in str(record.error) for record in failed)
    s3.refuses = lambda request: None
    run_inline(planned(path), lambda event: None)
    wanted = facts(local / "ledger")
    assert facts(root).items() <= wanted.items()
    assert all(cell.is_done for cell in planned(path).cells)
    assert len(weights_in_bucket()) == 2


def test_snapshots_under_the_root_stay_and_count_when_a_store_is_named_later(
    s3: S3Server, local: Path, tmp_path: Path
) -> None:
    shutil.copytree(local / "ledger", tmp_path / "ledger")
    path = sweep_at(tmp_path, ["full", "lora"], snapshots=ADDRESS)
    run_inline(planned(path), lambda event: None)
    assert weights_in_bucket() == [] and facts(tmp_path / "ledger") == facts(local / "ledger")


# Check


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [
        (denied("PUT"), r"snapshots/a/study/\.probe-\w+/1: Access Denied \(AccessDenied\)"),
        (denied("POST"), r"Access Denied"),
        (denied("GET"), r"Access Denied"),
        (expired_after(0), r"The provided token has expired\. \(ExpiredToken\); renew the credentials"),
    ],
)
def test_check_refuses_a_bucket_without_permission(
    s3: S3Server, tmp_path: Path, refuses: Callable[..., tuple[int, str] | None], reason: str
) -> None:
    plan = planned(sweep_at(tmp_path, ["lora"], snapshots=ADDRESS))
    s3.refuses = refuses
    (problem,) = snapshot_store_problems(plan)
    assert problem.place == f"{tmp_path}/sweep.yaml: storage.snapshots" and problem.value == ADDRESS
    assert re.search(reason, problem.rule) and "canary" not in str(problem)


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [
        (["s3:GetObject", "s3:ListBucket"], r"/1: Access Denied \(AccessDenied\)"),
        (["s3:GetObject", "s3:ListBucket", "s3:PutObject"], "is not deleted: Access Denied"),
    ],
)
def test_check_refuses_a_user_of_too_few_rights(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: list[str], reason: str
) -> None:
    """By the server's own judgement."""
    iam = boto3.session.Session().client("iam")
    iam.create_user(UserName="reader")
    rule = {"Effect": "Allow", "Action": allowed, "Resource": "*"}
    iam.put_user_policy(
        UserName="reader", PolicyName="read", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    )
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    s3_server.ask(s3.address, "POST", "/moto-api/reset-auth", "0")
    for keys, expected in (
        ((key["AccessKeyId"], key["SecretAccessKey"]), reason),
        (("nobody", "x"), "does not exist in our"),
    ):
        for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), keys, strict=True):
            monkeypatch.setenv(name, value)
        bucket._client.cache_clear()
        (problem,) = snapshot_store_problems(planned(sweep_at(tmp_path, ["lora"], snapshots=ADDRESS)))
        assert re.search(expected, problem.rule)


def test_check_refuses_a_bucket_that_is_not_there(s3: S3Server, tmp_path: Path) -> None:
    plan = planned(sweep_at(tmp_path, ["lora"], snapshots="s3://another/study"))
    (problem,) = snapshot_store_problems(plan)
    assert "The specified bucket does not exist (NoSuchBucket)" in problem.rule


def test_check_says_what_to_install(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    bucket._client.cache_clear()
    (problem,) = snapshot_store_problems(planned(sweep_at(tmp_path, ["lora"], snapshots=ADDRESS)))
    assert "pip install 'massive-sft[s3]'" in problem.rule


def test_check_refuses_a_store_without_conditional_writes(s3: S3Server, tmp_path: Path) -> None:
    s3.ignores = frozenset({"if-none-match"})
    (problem,) = snapshot_store_problems(planned(sweep_at(tmp_path, ["lora"], snapshots=ADDRESS)))
    assert "of two writers both would win" in problem.rule


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("/scratch/snapshots", "must be s3://BUCKET"),
        ("s3://key:canary@bucket/study", "must be s3://BUCKET"),
        ("s3://Bucket/study", "must be s3://BUCKET"),
        ("s3://bucket/a/../b", "must be s3://BUCKET"),
        ("gs://bucket/study", "must be s3://BUCKET"),
        ("${NO_SUCH_VARIABLE}/study", "needs the environment variable NO_SUCH_VARIABLE"),
    ],
)
def test_address_that_is_none_is_refused(tmp_path: Path, address: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as caught:
        planned(sweep_at(tmp_path, ["lora"], snapshots=address))
    assert "sweep.yaml: storage.snapshots" in str(caught.value) and "canary" not in str(caught.value)
