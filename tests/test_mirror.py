"""The mirror shows what the ledger says, once, whatever happens to the tracker and to the process that writes."""

import base64
import contextlib
import errno
import gzip
import hashlib
import http.client
import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tracking_server
from commands import command, start_function
from disturbed import sweep_at
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from processes import free_port, is_healthy

from massive_sft.core import files
from massive_sft.core.errors import InvalidInput
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.manifest import seal_folder
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking import connection_check, store
from massive_sft.tracking import mirror as mirroring
from massive_sft.tracking.address import client_address, resolve_uri
from massive_sft.tracking.client import silence_loggers
from massive_sft.tracking.mirror import Mirror, mirror_all
from massive_sft.tracking.shown import Shown
from massive_sft.tracking.source import AsRecorded
from massive_sft.tracking.sweep_run import Origin
from massive_sft.tracking.tracker import TOKEN, Tracker, runs_page
from massive_sft.tracking.view import view_columns

SWEEP = "study"
TRAJECTORY = "00000000000000aa"
CREATED, FINISHED = "2026-01-31T12:00:00+00:00", "2026-01-31T12:01:30+00:00"
CREATED_MS = 1769860800000
CANARY = "canary5f3a9c1e77"
SETTING = {
    "lr": 1e-5,
    "lora": {"alpha": 32.0},
    "optimizer": {"name": "adamw", "betas": [0.9, 0.999]},
    "template": {"prompt": "{prompt}"},
}


def cell_id(number: int) -> str:
    return f"{number:016x}"


def coordinates(epoch: int, model: str = "tiny") -> Coordinates:
    return Coordinates(model, "alpaca", "full", "full", 100, "constant", None, epoch, 0, "")


def score(value: float | None) -> dict:
    return {"value": value, "stderr": None, "interval": None, "method": None, "n": 4, "higher_is_better": True}


def benchmark(value: float | None, name: str = "mmlu-0shot", asked: str = "mmlu@0 abc") -> dict:
    tasks = {"mmlu": {"acc,none": score(value), "em,strict-match": score(0.5), "f1,none": score(None)}}
    return {"benchmark": name, "asked": asked, "shots": 0, "tasks": tasks}


def write(ledger: Ledger, number: int = 1, epoch: int = 2, **changes) -> str:
    """Write a cell and its next record; return its id."""
    cell = cell_id(number)
    content = {
        "cell": cell,
        "trajectory": TRAJECTORY,
        "coordinates": coordinates(epoch)._asdict(),
        "status": Status.COMPLETE,
        "attempt": 1,
        "scores": {"aaaaaaaaaaaa": benchmark(0.25)},
        "measures": {
            "perplexity": {"schema": 1, "response": {"perplexity_micro": 3.5, "interval": [3.0, 4.0]}},
            "layer_change": {"relative": 0.1, "relative_by_layer": {"0": 0.2, "3": 0.3}},
        },
        "training": {"last_loss": 0.5, "steps": 6, "status": "COMPLETE", "layout": {"zero": 1}},
        "provenance": {"host": "h", "git": {"commit": "c0ffee", "dirty_sha256": None}},
        "created": CREATED,
        "finished": FINISHED,
    }
    ledger.write_cell(cell, {"setting": SETTING, "schedule": {"name": "constant"}, "seed": 0, "epoch": epoch})
    ledger.write_record(Record(**(content | changes)))
    return cell


def write_losses(ledger: Ledger, steps: int, epochs: int, **changed: dict[int, float | str]) -> None:
    """Publish a training whose step k has loss 1/k and took one second; ``changed`` values by step."""
    folder = ledger.trajectory_dir(TRAJECTORY) / "training" / f"attempt-{epochs}"
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "epoch": 1 + (step - 1) * epochs // steps, "loss": 1 / step, "lr": 1e-5}
        line |= {"grad_norm": 1.0, "tokens": 9, "trainable_tokens": 3, "seconds": 1.0}
        lines.append(line | {key: values[step] for key, values in changed.items() if step in values})
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seal_folder(folder)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database without experiments: making one takes over a second."""
    silence_loggers()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def ledger(tmp_path, empty_store):
    ledger = Ledger.open(tmp_path / "root")
    (ledger.root / "mlflow.db").write_bytes(empty_store)
    return ledger


def uri_of(ledger: Ledger) -> str:
    return f"sqlite:///{ledger.root}/mlflow.db"


def mirror(ledger: Ledger, names: dict[str, Coordinates], uri: str = "", sweep: str = SWEEP) -> None:
    assert not mirror_all(ledger, sweep, names, uri)


def runs_of(uri: str, sweep: str = SWEEP) -> tuple[object, dict[str, object]]:
    """Return the parent run and the child runs by cell; two runs of one cell, or two parents, fail."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(sweep).experiment_id], run_view_type=ViewType.ALL)
    (parent,) = [run for run in found if "massive_sft.sweep" in run.data.tags]
    children = [run for run in found if run is not parent]
    assert all(run.data.tags["massive_sft.parent"] == parent.info.run_id for run in children)
    by_cell = {run.data.tags["massive_sft.cell"]: run for run in children}
    assert len(by_cell) == len(children)
    return parent, by_cell


def child_of(ledger: Ledger, cell: str):
    return runs_of(uri_of(ledger))[1][cell]


def history(uri: str, run, key: str) -> list[tuple[int, float, int]]:
    points = MlflowClient(uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def everything(uri: str, sweep: str = SWEEP) -> dict:
    """Return all that a store shows of a sweep, without the ids that the store gives."""
    client, (parent, children) = MlflowClient(uri), runs_of(uri, sweep)
    shown = {sweep: {key: value for key, value in parent.data.tags.items() if key != TOKEN}}
    for cell, run in children.items():
        shown[cell] = {
            "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key != "massive_sft.parent"},
            "metrics": {key: history(uri, run, key) for key in run.data.metrics},
            "files": files_of(client, run.info.run_id),
        }
    return shown


def files_of(client: MlflowClient, run: str) -> dict[str, str]:
    """Return the SHA-256 of a run's artifacts by name."""
    with tempfile.TemporaryDirectory() as folder:
        client.download_artifacts(run, "", folder)
        return {path.name: hash_file(path) for path in Path(folder).iterdir()}


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


# What a run shows


def test_record_becomes_a_run_below_the_sweeps_own(ledger):
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    parent, children = runs_of(uri_of(ledger))
    run = children[cell]
    assert (parent.info.run_name, parent.info.status, parent.info.start_time) == (SWEEP, "FINISHED", CREATED_MS)
    assert parent.info.end_time == run.info.end_time, "the sweep ended with its last cell"
    assert (run.info.run_name, run.info.status) == (str(coordinates(2)), "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (CREATED_MS, CREATED_MS + 90_000)
    assert (run.data.params["optimizer.betas"], run.data.params["lora.alpha"]) == ("[0.9, 0.999]", "32")
    assert (run.data.params["lr"], run.data.params["model"], run.data.params["mixture"]) == ("1e-05", "tiny", "alpaca")
    assert (run.data.params["size"], run.data.params["epoch"]) == ("100", "2")
    assert "horizon" not in run.data.params
    tags = {key.removeprefix("massive_sft."): value for key, value in run.data.tags.items()}
    assert (tags["status"], tags["trajectory"], tags["git"]) == ("COMPLETE", TRAJECTORY, "c0ffee")
    assert tags["ledger"] == str(ledger.root)


def test_scores_and_measures_become_metrics_that_compare_as_bars_and_none_is_left_out(ledger):
    cell = write(ledger, epoch=2)
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    assert run.data.metrics == {
        "mmlu/acc": 0.25,
        "mmlu/em.strict-match": 0.5,
        "perplexity/response/perplexity_micro": 3.5,
        "layer_change/relative": 0.1,
        "layer_change/by_layer": 0.3,
        "training/summary/last_loss_mean": 0.5,
        "training/summary/steps": 6.0,
    }
    # At step 0 MLflow draws bars of several runs, at any other a line of one point.
    assert history(uri_of(ledger), run, "mmlu/acc") == [(0, 0.25, CREATED_MS + 90_000)]
    profile = history(uri_of(ledger), run, "layer_change/by_layer")
    assert [(layer, change) for layer, change, _ in profile] == [(0, 0.2), (3, 0.3)]


def test_parts_of_a_benchmark_and_shots_are_told_apart(ledger):
    parts = {name: {"acc,none": score(0.5)} for name in ("mmlu_law", "mmlu_math")}
    grouped = benchmark(0.5) | {"tasks": parts, "groups": {"mmlu": {"acc,none": score(0.75)}}}
    several = benchmark(0.5, "mmlu-5shot", "mmlu@5 abc") | {"shots": 5}
    cell = write(ledger, scores={"a" * 12: grouped, "b" * 12: several})
    mirror(ledger, {cell: coordinates(2)})
    scores = {key for key in child_of(ledger, cell).data.metrics if key.startswith("mmlu")}
    assert scores == {
        "mmlu/acc",
        "mmlu/parts/mmlu_law.acc",
        "mmlu/parts/mmlu_math.acc",
        "mmlu-5shot/acc",
        "mmlu-5shot/em.strict-match",
    }


def test_gain_over_the_base_is_a_metric_and_follows_the_bases_record(ledger):
    base = Coordinates("tiny", "none", "none", "none", 0, "none", None, 0, None, "")
    names = {write(ledger, 1): coordinates(2), cell_id(2): base}
    mirror(ledger, names)
    assert not [key for key in child_of(ledger, cell_id(1)).data.metrics if key.startswith("gain")]
    for before, gain in ((0.125, 0.125), (0.75, -0.5), (0.3, -0.05)):
        scores = {"aaaaaaaaaaaa": benchmark(before), "cccccccccccc": benchmark(0.5, asked="mmlu@0 other")}
        write(ledger, 2, coordinates=base._asdict(), trajectory=None, scores=scores, training={})
        mirror(ledger, names)
        shown = child_of(ledger, cell_id(1)).data.metrics
        assert {key: value for key, value in shown.items() if key.startswith("gain")} == {
            "gain/mmlu/acc": gain,
            "gain/mmlu/em.strict-match": 0.0,
        }
    assert not [key for key in child_of(ledger, cell_id(2)).data.metrics if key.startswith("gain")]


def test_duration_is_the_training_up_to_the_epoch_and_the_cells_own_scoring(ledger):
    training = {"seconds": 600.5, "steps": 6, "last_loss": 0.5}
    cell = write(ledger, training=training, cost={"seconds": {"mmlu@0 abc": 2.25, "load": 0.5}})
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    assert (run.info.start_time, run.info.end_time) == (CREATED_MS - 600_500, CREATED_MS + 2750)
    parent, _ = runs_of(uri_of(ledger))
    assert parent.info.start_time == run.info.start_time
    later = {"created": "2026-03-01T00:00:00+00:00", "finished": "2026-03-01T00:01:00+00:00"}
    added = benchmark(0.5) | {"benchmark": "arc", "tasks": {"arc": {"acc,none": score(0.5)}}}
    later["scores"] = {"aaaaaaaaaaaa": benchmark(0.25), "bbbbbbbbbbbb": added}
    write(ledger, training=training, cost={"seconds": {"mmlu@0 abc": 2.25, "arc@0 def": 1.0, "load": 0.5}}, **later)
    mirror(ledger, {cell: coordinates(2)})
    again = child_of(ledger, cell)
    assert (again.info.start_time, again.info.end_time) == (run.info.start_time, run.info.end_time + 1000)


def test_times_of_a_cell_that_failed_and_was_made_again_are_those_of_what_it_is_now(ledger):
    at = {"created": "2026-03-01T00:00:00+00:00", "finished": "2026-03-01T00:00:00+00:00"}
    cell = write(
        ledger, status=Status.FAILED, error="invalidated: other data", scores={}, measures={}, training={}, **at
    )
    mirror(ledger, {cell: coordinates(2)})
    assert child_of(ledger, cell).info.status == "FAILED"
    again = {"created": "2026-03-02T00:10:00+00:00", "finished": "2026-03-02T00:11:00+00:00"}
    write(ledger, training={"seconds": 300.0, "steps": 6, "last_loss": 0.5}, **again)
    mirror(ledger, {cell: coordinates(2)})
    client = MlflowClient(uri_of(ledger))
    experiment = client.get_experiment_by_name(SWEEP).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`massive_sft.cell` = '{cell}'")
    began = round(1000 * datetime.fromisoformat(again["created"]).timestamp())
    told = (run.info.status, run.info.start_time, run.info.end_time)
    assert told == ("FINISHED", began - 300_000, began + 60_000)


def test_experiment_opens_on_its_runs_with_columns_of_parameters_scores_and_gains(ledger):
    base = Coordinates("tiny", "none", "none", "none", 0, "none", None, 0, None, "")
    names = {write(ledger, 1): coordinates(2), cell_id(2): base}
    write(ledger, 2, coordinates=base._asdict(), trajectory=None, training={})
    mirror(ledger, names)
    experiment = MlflowClient(uri_of(ledger)).get_experiment_by_name(SWEEP)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(experiment.tags["mlflow.sharedViewState.massive-sft"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    shown = ["model", "mixture", "method", "lr", "seed", "epoch"]
    assert state["selectedColumns"] == [
        *(f"params.`{name}`" for name in shown),
        "metrics.`mmlu/acc`",
        "metrics.`gain/mmlu/acc`",
    ]
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["training/loss", "mmlu/acc", "gain/mmlu/acc"]
    key = "workflowType=machine_learning&viewStateShareKey=massive-sft"
    assert runs_page(uri_of(ledger), SWEEP) == f"/#/experiments/{experiment.experiment_id}/runs?{key}"


class AskedBySearch(AsRecorded):
    def tags(self, cell: str) -> dict[str, str]:
        return {"massive_sft.search": "s", "massive_sft.decision": "3"}


def test_view_of_a_search_has_columns_of_what_decided(ledger):
    names = {write(ledger): coordinates(2)}
    assert not mirror_all(ledger, SWEEP, names, "", as_asked=AskedBySearch())
    experiment = MlflowClient(uri_of(ledger)).get_experiment_by_name(SWEEP)
    view = experiment.tags["mlflow.sharedViewState.massive-sft"]
    assert view_columns(view) == (["mmlu/acc"], ["massive_sft.search", "massive_sft.decision"])


def test_view_gains_columns_as_scores_come_until_somebody_makes_it_their_own(ledger):
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    client, tag = MlflowClient(uri_of(ledger)), "mlflow.sharedViewState.massive-sft"
    experiment = client.get_experiment_by_name(SWEEP)
    more = {"aaaaaaaaaaaa": benchmark(0.25), "bbbbbbbbbbbb": benchmark(0.5, "arc-0shot", "arc@0 abc")}
    write(ledger, scores=more)
    mirror(ledger, {cell: coordinates(2)})
    grown = client.get_experiment(experiment.experiment_id).tags[tag]
    assert view_columns(grown) == (["mmlu/acc", "arc/acc"], [])
    own = json.dumps(json.loads(grown) | {"updatedAt": 1 + json.loads(grown)["updatedAt"]})
    client.set_experiment_tag(experiment.experiment_id, tag, own)
    write(ledger, scores=more | {"cccccccccccc": benchmark(0.5, "piqa-0shot", "piqa@0 abc")})
    mirror(ledger, {cell: coordinates(2)})
    assert client.get_experiment(experiment.experiment_id).tags[tag] == own


def test_two_runs_differ_in_the_parameters_in_which_their_cells_do(ledger):
    data = {"parts": [{"count": 160, "source": {"files": "data:0011"}}], "sample_seed": 0}
    counts = {"parts": [{"name": "alpaca", "samples": 158}]}
    names = {}
    for number, changed in enumerate(({}, {"count": 80})):
        cell = write(ledger, number, counts=counts)
        content = {"setting": SETTING | {"lr": 1e-5 * (1 + number)}, "schedule": {"name": "constant"}}
        ledger.cell_dir(cell).joinpath("cell.json").unlink()
        ledger.write_cell(cell, content | {"data": data | {"parts": [data["parts"][0] | changed]}, "epoch": 2})
        names[cell] = coordinates(2)._replace(data=f"mixture {number}")
    mirror(ledger, names)
    first, second = (child_of(ledger, cell) for cell in names)
    keys = first.data.params.keys() | second.data.params.keys()
    differing = {key for key in keys if first.data.params.get(key) != second.data.params.get(key)}
    assert differing == {"lr", "mixture", "mixture.id"}
    assert first.data.params["mixture.parts"] == "alpaca 158"
    (used,) = first.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("mixture 0", first.data.params["mixture.id"])


def test_runs_of_an_earlier_version_are_written_anew_under_the_names_of_this_one(ledger):
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    parent, children = runs_of(uri_of(ledger))
    client, run = MlflowClient(uri_of(ledger)), children[cell].info.run_id
    client.delete_tag(run, "massive_sft.parent")
    client.set_tag(run, "mlflow.parentRunId", parent.info.run_id)
    client.log_metric(run, "mmlu-0shot/mmlu/acc", 0.25)
    client.create_run(parent.info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id, "mine": "yes"})
    mirror(ledger, {cell: coordinates(2)})
    found = client.search_runs([parent.info.experiment_id])
    (rebuilt,) = [run for run in found if "massive_sft.cell" in run.data.tags]
    assert rebuilt.data.tags["massive_sft.parent"] == parent.info.run_id
    assert rebuilt.data.metrics["mmlu/acc"] == 0.25
    assert "mmlu-0shot/mmlu/acc" not in rebuilt.data.metrics
    assert len(found) == 3, "the sweep's run is the same, and a run that somebody else nested stays"


def test_names_that_mlflow_refuses_are_cleaned_and_stay_apart(ledger):
    tasks = {name: {"acc,none": score(0.5)} for name in ("a(b", "a[b", "x/../y", "日本")}
    two = {name: tasks[name] for name in ("a[b", "日本")}
    cell = write(ledger, 1, epoch=2, scores={"p": benchmark(0.5) | {"tasks": tasks}})
    fewer = write(ledger, 2, epoch=1, scores={"p": benchmark(0.5) | {"tasks": two}})
    mirror(ledger, {cell: coordinates(2), fewer: coordinates(1)})
    keys, same = ({key for key in child_of(ledger, one).data.metrics if key[:4] == "mmlu"} for one in (cell, fewer))
    assert len(keys) == 4 and len(same) == 2 and same < keys, "a name is of the benchmark alone"
    assert "mmlu/parts/日本.acc" in same
    assert any(key.startswith("mmlu/parts/x_.._y.acc-") for key in keys)


def test_one_benchmark_under_two_protocols_shows_both(ledger):
    scores = {"a" * 12: benchmark(0.25), "b" * 12: benchmark(0.75, asked="mmlu@0 def")}
    cell = write(ledger, scores=scores)
    mirror(ledger, {cell: coordinates(2)})
    metrics = child_of(ledger, cell).data.metrics
    assert (metrics["mmlu aaaaaaaa/acc"], metrics["mmlu bbbbbbbb/acc"]) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": Status.FAILED, "error": "RuntimeError: gone"}, "FAILED"),
        ({"status": Status.DIVERGED, "error": "loss is nan"}, "FINISHED"),
        ({"status": Status.PARTIAL, "missing": {"mmlu-0shot": "no data"}}, "FINISHED"),
    ],
)
def test_outcome_other_than_complete_says_what_and_why(ledger, changes, status):
    cell = write(ledger, **changes)
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    assert (run.info.status, run.data.tags["massive_sft.status"]) == (status, changes["status"].value)
    reason = run.data.tags["massive_sft.error"] + run.data.tags["massive_sft.missing"]
    assert ("no data" if "missing" in changes else changes["error"]) in reason


def test_loss_curve_ends_at_the_cells_epoch_with_the_times_of_its_steps(ledger):
    write_losses(ledger, steps=12, epochs=4)
    cell = write(ledger, epoch=2)
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    points = history(uri_of(ledger), run, "training/loss")
    assert points == [(step, 1 / step, CREATED_MS - 1000 * (6 - step)) for step in range(1, 7)]
    assert len(history(uri_of(ledger), run, "training/lr")) == len(history(uri_of(ledger), run, "training/grad_norm"))
    assert run.data.tags["massive_sft.curve"] == "6 of 6 steps"


def test_long_loss_curve_is_thinned_evenly_and_says_so(ledger):
    write_losses(ledger, steps=2500, epochs=2)
    cell = write(ledger, epoch=2)
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    steps = [step for step, _, _ in history(uri_of(ledger), run, "training/loss")]
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    assert (len(steps), steps[0], steps[-1], gaps) == (1000, 1, 2500, {2, 3})
    assert run.data.tags["massive_sft.curve"] == "1000 of 2500 steps"


def test_loss_curve_of_a_diverged_run_leaves_out_what_cannot_be_drawn_and_counts_it(ledger):
    write_losses(ledger, steps=4, epochs=2, loss={4: "nan"}, grad_norm={3: "inf", 4: "nan"})
    cell = write(ledger, epoch=2, status=Status.DIVERGED, error="loss is nan")
    mirror(ledger, {cell: coordinates(2)})
    run = child_of(ledger, cell)
    assert [step for step, _, _ in history(uri_of(ledger), run, "training/loss")] == [1, 2, 3]
    assert run.data.tags["massive_sft.curve"] == "4 of 4 steps, 3 numbers not finite"


def test_files_go_with_a_run_and_of_the_responses_twenty_of_each_task(ledger, tmp_path):
    home = ledger.cell_dir(cell_id(1))
    shard = home / "responses" / "aaaaaaaaaaaa" / "mmlu" / "00000.jsonl.gz"
    shard.parent.mkdir(parents=True)
    (home / "layers.parquet").write_bytes(b"PAR1")
    cell = write(ledger, files={f"cells/{cell_id(1)}/layers.parquet": hash_file(home / "layers.parquet")})
    lines = "\n".join(json.dumps({"index": index, "text": "é"}) for index in range(30))
    head = json.dumps({"schema": 1, "responses": hashlib.sha256(lines.encode()).hexdigest()})
    shard.write_bytes(gzip.compress(f"{head}\n{lines}".encode()))
    mirror(ledger, {cell: coordinates(2)})
    client, run = MlflowClient(uri_of(ledger)), child_of(ledger, cell)
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert {path.name for path in folder.iterdir()} >= {"record.json", "cell.json", "layers.parquet"}
    assert (folder / "layers.csv").read_text() == "layer,relative_change\n0,0.2\n3,0.3\n"
    assert json.loads((folder / "record.json").read_text())["cell"] == cell
    sample = [json.loads(line) for line in (folder / "responses-sample.jsonl").read_text().splitlines()]
    assert [line["index"] for line in sample] == list(range(20))
    assert sample[0] == {"benchmark": "mmlu-0shot", "task": "mmlu", "index": 0, "text": "é"}


# Once, and whatever was missed


def test_mirroring_again_writes_nothing(ledger):
    write_losses(ledger, steps=4, epochs=2)
    names = {write(ledger, number): coordinates(2) for number in (1, 2)}
    mirror(ledger, names)
    before = everything(uri_of(ledger))
    files = {path: path.stat().st_mtime_ns for path in (ledger.root / "mlflow-artifacts").rglob("*")}
    mirror(ledger, names)
    assert everything(uri_of(ledger)) == before
    assert {path: path.stat().st_mtime_ns for path in (ledger.root / "mlflow-artifacts").rglob("*")} == files
    assert not (ledger.sweep_dir(SWEEP) / "mirror-spool.jsonl").exists()


def test_newer_record_updates_the_same_run_even_within_one_second(ledger):
    write_losses(ledger, steps=4, epochs=2)
    cell = write(ledger, status=Status.FAILED, error="boom")
    mirror(ledger, {cell: coordinates(2)})
    before = child_of(ledger, cell)
    write(ledger, scores={"aaaaaaaaaaaa": benchmark(0.125)})
    mirror(ledger, {cell: coordinates(2)})
    after = child_of(ledger, cell)
    assert after.info.run_id == before.info.run_id
    assert (before.info.status, after.info.status) == ("FAILED", "FINISHED")
    assert after.data.metrics["mmlu/acc"] == 0.125
    assert after.data.tags["massive_sft.error"] == "none"
    assert len(history(uri_of(ledger), after, "training/loss")) == 4


def test_newer_record_is_shown_though_the_clock_was_set_back_since(ledger):
    cell = write(ledger, created="2026-01-31T14:00:00+00:00", finished="2026-01-31T14:01:30+00:00")
    mirror(ledger, {cell: coordinates(2)})
    for value in (0.75, 0.5):
        write(ledger, scores={"aaaaaaaaaaaa": benchmark(value)})
        mirror(ledger, {cell: coordinates(2)})
        assert child_of(ledger, cell).data.metrics["mmlu/acc"] == value


def test_training_that_was_made_again_with_other_losses_does_not_stand_in_one_curve_with_the_first(ledger, caplog):
    caplog.set_level(logging.INFO, logger="massive_sft")
    write_losses(ledger, steps=4, epochs=2)
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    shutil.rmtree(ledger.trajectory_dir(TRAJECTORY) / "training" / "attempt-2")
    write_losses(ledger, steps=4, epochs=2, loss={3: 0.25})
    write(ledger, created=FINISHED, training={"last_loss": 0.25, "steps": 4})
    mirror(ledger, {cell: coordinates(2)})
    client = MlflowClient(uri_of(ledger))
    (run,) = client.search_runs(
        [client.get_experiment_by_name(SWEEP).experiment_id], f"tags.`massive_sft.cell` = '{cell}'"
    )
    assert [loss for _, loss, _ in history(uri_of(ledger), run, "training/loss")] == [1.0, 0.5, 0.25, 0.25]
    assert "has another loss curve" in caplog.text


def test_run_that_went_on_leaves_the_curves_of_its_earlier_cells_alone(ledger):
    write_losses(ledger, steps=4, epochs=2)
    cell = write(ledger, epoch=2)
    mirror(ledger, {cell: coordinates(2)})
    before = history(uri_of(ledger), child_of(ledger, cell), "training/loss")
    write_losses(ledger, steps=8, epochs=4)
    write(ledger, epoch=2, attempt=2, created=FINISHED, scores={"aaaaaaaaaaaa": benchmark(0.5)})
    mirror(ledger, {cell: coordinates(2)})
    assert history(uri_of(ledger), child_of(ledger, cell), "training/loss") == before
    assert len(before) == 4


def test_cell_that_the_sweep_renamed_keeps_its_run_under_the_new_name(ledger):
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    write(ledger, scores={"aaaaaaaaaaaa": benchmark(0.5)})
    mirror(ledger, {cell: coordinates(2, model="small")})
    run = child_of(ledger, cell)
    assert run.info.run_name == str(coordinates(2, model="small"))
    assert (run.data.params["model"], run.data.tags["massive_sft.now.model"]) == ("tiny", "small")


def test_deleted_store_is_rebuilt_with_the_same_content(ledger, empty_store, tmp_path):
    write_losses(ledger, steps=4, epochs=2)
    names = {write(ledger, number, epoch): coordinates(epoch) for number, epoch in ((1, 1), (2, 2))}
    mirror(ledger, names)
    other = tmp_path / "other" / "mlflow.db"
    other.parent.mkdir()
    other.write_bytes(empty_store)
    mirror(ledger, names, f"sqlite:///{other}")
    assert everything(f"sqlite:///{other}") == everything(uri_of(ledger))


def test_mirror_killed_before_any_of_its_calls_leaves_no_duplicate_and_loses_nothing(ledger, empty_store, tmp_path):
    write_losses(ledger, steps=400, epochs=2)  # their curves are more than one call
    names = {write(ledger): coordinates(2)}
    mirror(ledger, names)
    expected = everything(uri_of(ledger))
    calls = ("create_experiment", "create_run", "log_batch", "log_artifact", "set_tag", "set_terminated")
    uploads = set()
    for number in range(1, 20):
        store = tmp_path / str(number) / "mlflow.db"
        store.parent.mkdir()
        store.write_bytes(empty_store)
        child = os.fork()
        if child == 0:
            kill_before_call(number, calls)
            mirror_all(ledger, SWEEP, names, f"sqlite:///{store}")
            os._exit(0)
        _, state = os.waitpid(child, 0)
        uploads |= set(ledger.sweep_dir(SWEEP).glob(".mirror-*"))
        mirror(ledger, names, f"sqlite:///{store}")
        shown = everything(f"sqlite:///{store}")
        assert shown == expected, number
        if os.WIFEXITED(state):
            assert number > len(calls) + 2
            assert uploads and not any(folder.exists() for folder in uploads)
            return
    pytest.fail("it was always killed")


def test_curve_of_an_earlier_version_that_may_lack_its_end_is_made_whole(ledger):
    write_losses(ledger, steps=300, epochs=2)
    names = {write(ledger): coordinates(2)}
    mirror(ledger, names)
    whole = everything(uri_of(ledger))[cell_id(1)]["metrics"]
    MlflowClient(uri_of(ledger)).delete_tag(child_of(ledger, cell_id(1)).info.run_id, "massive_sft.curve_whole")
    with contextlib.closing(sqlite3.connect(ledger.root / "mlflow.db")) as database, database:
        for table in ("metrics", "latest_metrics"):
            database.execute(f"DELETE FROM {table} WHERE key LIKE 'training/l%' AND step > 200")
    assert everything(uri_of(ledger))[cell_id(1)]["metrics"] != whole
    (ledger.sweep_dir(SWEEP) / "mirror-shown.jsonl").unlink()  # as ``massive-sft mirror``
    mirror(ledger, names)
    assert everything(uri_of(ledger))[cell_id(1)]["metrics"] == whole


def kill_before_call(number: int, names: tuple[str, ...]) -> None:
    """Let this process die before the ``number``-th of its calls to the tracker."""
    left = [number]

    def dying(call):
        def called(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return called

    for name in names:
        setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))


def test_cell_that_was_put_is_mirrored_while_the_sweep_runs(ledger):
    names = {cell_id(1): coordinates(2)}
    running = Mirror.open(ledger, SWEEP, names, "")
    try:
        assert runs_of(uri_of(ledger))[0].info.status == "RUNNING"
        running.put(write(ledger))
        until(lambda: not running.pending)
        assert child_of(ledger, cell_id(1)).info.status == "FINISHED"
        running.put(write(ledger, attempt=2, scores={"aaaaaaaaaaaa": benchmark(0.5)}))
        until(lambda: not running.pending)
    finally:
        left = running.close()
    assert (left.items, left.reason, bool(left)) == ((), "", False)
    assert runs_of(uri_of(ledger))[0].info.status == "FINISHED"
    assert child_of(ledger, cell_id(1)).data.tags["massive_sft.attempt"] == "2"


def test_sweep_file_and_report_go_to_the_sweeps_run(ledger, tmp_path, caplog):
    (tmp_path / "sweep.yaml").write_text("name: study\ntracking: {mlflow: 'http://me:hunter2@tracker'}\n")
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    running = Mirror.open(ledger, SWEEP, {}, "")
    shutil.copy(tmp_path / "sweep.yaml", tmp_path / "sweep.conf")
    for name in ("sweep.yaml", "sweep.conf", "report.html", "gone.html"):
        running.artifact(tmp_path / name)
    assert not running.close()
    folder = Path(runs_of(uri_of(ledger))[0].info.artifact_uri.removeprefix("file://"))
    for name in ("sweep.yaml", "sweep.conf"):
        assert (folder / name).read_text() == "name: study\ntracking: {mlflow: 'http://***@tracker'}\n"
    assert (folder / "report.html").read_text() == "<h1>Report</h1>"
    assert "gone.html is gone" in caplog.text


def test_second_mirror_waits_and_the_first_writes_what_the_second_was_told(ledger, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    names = {cell_id(number): coordinates(2) for number in (1, 2)}
    first = Mirror.open(ledger, SWEEP, names, "")
    second = Mirror.open(ledger, SWEEP, names, "")
    second.put(write(ledger, 2))
    left = second.close()
    assert left.items == (cell_id(2),)
    assert "another process mirrors this sweep" in left.reason
    assert not first.close()
    assert set(runs_of(uri_of(ledger))[1]) == {cell_id(2)}


def test_second_mirror_takes_its_turn_when_the_first_ends(ledger, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    lease = Lease.acquire(ledger.sweep(SWEEP).at("mirror-lease"), "another")
    running = Mirror.open(ledger, SWEEP, {cell_id(1): coordinates(2)}, "")
    assert running.problem
    lease.release()
    until(lambda: not running.problem)
    running.put(write(ledger))
    assert not running.close()
    assert set(runs_of(uri_of(ledger))[1]) == {cell_id(1)}


def held_elsewhere(ledger, ttl_s: float, beat: int) -> None:
    """Leave a mirror's lease in the hands of a process on another machine."""
    process = {"host": "elsewhere", "boot": "b", "pid_namespace": "n", "pid": 1, "started": "1"}
    head = {"name": "elsewhere:1", "token": "t", "ttl": ttl_s, "process": process}
    ledger.sweep(SWEEP).at("mirror-lease").put("1", f"{json.dumps(head)}\n{beat:020d} held    \n".encode())


def test_mirror_whose_process_died_elsewhere_is_gone_on_with(ledger, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.1)
    names = {write(ledger, 1): coordinates(2)}
    held_elsewhere(ledger, 0.5, 1)
    assert not mirror_all(ledger, SWEEP, names, "")
    assert set(runs_of(uri_of(ledger))[1]) == set(names)


def test_mirror_of_a_process_that_lives_elsewhere_is_left_to_it(ledger, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.1)
    names = {write(ledger, 1): coordinates(2)}
    held_elsewhere(ledger, 3600.0, 1)
    over = threading.Event()

    def live() -> None:
        beat = 1
        while not over.wait(0.2):
            beat += 1
            held_elsewhere(ledger, 3600.0, beat)

    living = threading.Thread(target=live)
    living.start()
    left = mirror_all(ledger, SWEEP, names, "")
    over.set()
    living.join()
    assert left.items == (cell_id(1),)
    assert "another process mirrors this sweep" in left.reason


def test_store_that_another_process_has_locked_is_waited_for_and_not_refused(ledger, monkeypatch):
    """Whoever stands still while it writes keeps the lock; nobody else's sweep is held up by that."""
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(store, "LOCKED_S", 0.1)
    with contextlib.closing(sqlite3.connect(ledger.root / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("begin exclusive")
        running = Mirror.open(ledger, SWEEP, {cell_id(1): coordinates(2)}, "")
        assert "database is locked" in running.problem
        running.put(write(ledger))
        holder.execute("rollback")
    assert not running.close()
    assert set(runs_of(uri_of(ledger))[1]) == {cell_id(1)}


def test_database_of_something_else_that_was_locked_at_the_start_stays_as_it_is(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(store, "LOCKED_S", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as holder:
        holder.execute("create table runs (a)")
        before = (tmp_path / "other.db").read_bytes()
        holder.execute("begin exclusive")
        running = Mirror.open(ledger, SWEEP, {}, f"sqlite:///{tmp_path}/other.db")
        holder.execute("rollback")
    assert "something else than MLflow" in running.close().reason
    assert (tmp_path / "other.db").read_bytes() == before


def test_first_mirror_looks_again_after_it_gave_the_lease_back(ledger, monkeypatch):
    """The second was refused the lease after the first had looked for the last time, and left its record to it."""
    names = {cell_id(number): coordinates(2) for number in (1, 2)}
    first, second = (Mirror.open(ledger, SWEEP, names, "") for _ in range(2))
    left = []

    def finish(tracker):
        if not left:
            second.put(write(ledger, 2))
            left.append(second.close())

    monkeypatch.setattr(Tracker, "finish", finish)
    assert not first.close()
    assert left[0].items == (cell_id(2),)
    assert set(runs_of(uri_of(ledger))[1]) == {cell_id(2)}


def test_cell_that_cannot_be_read_holds_up_no_other_and_is_named_at_the_end(ledger):
    names = {write(ledger, number): coordinates(2) for number in (1, 2, 3)}
    (ledger.cell_dir(cell_id(1)) / "cell.json").write_text("{")
    left = mirror_all(ledger, SWEEP, names, "")
    assert left.items == (cell_id(1),)
    assert "cell.json" in left.reason
    spool = ledger.sweep_dir(SWEEP) / "mirror-spool.jsonl"
    assert spool.read_text() == json.dumps({"cell": cell_id(1)}) + "\n"
    assert set(runs_of(uri_of(ledger))[1]) == {cell_id(2), cell_id(3)}
    (ledger.cell_dir(cell_id(1)) / "cell.json").unlink()
    write(ledger, 1)
    mirror(ledger, names)
    assert len(runs_of(uri_of(ledger))[1]) == 3
    assert not spool.exists()


@pytest.mark.parametrize("unreadable", ["what it is", "its responses", "its record"])
def test_file_of_the_ledger_that_cannot_be_read_is_no_lost_tracker(ledger, unreadable, monkeypatch, caplog):
    names = {write(ledger, number): coordinates(2) for number in (1, 2, 3)}
    home, read = ledger.cell_dir(cell_id(1)), files.read_bytes
    if unreadable == "what it is":
        (home / "cell.json").unlink()
    elif unreadable == "its responses":
        (home / "responses/aaaaaaaaaaaa/mmlu/00000.jsonl.gz").mkdir(parents=True)
    else:
        ledger.entries()  # the index knows it, so the sweep goes on

        def refuse(path):
            if f"/{cell_id(1)}.record" in str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return read(path)

        monkeypatch.setattr(files, "read_bytes", refuse)
    left = mirror_all(ledger, SWEEP, names, "")
    assert left.items == (cell_id(1),)
    assert "cannot be read" in left.reason
    assert "the tracker is lost" not in caplog.text
    parent, children = runs_of(uri_of(ledger))
    assert parent.info.status == "FINISHED"
    assert {cell for cell, run in children.items() if "massive_sft.record" in run.data.tags} == {cell_id(2), cell_id(3)}


def test_spool_names_what_left_the_sweep_since_and_a_damaged_one_is_written_anew(ledger, caplog):
    cell = write(ledger)
    spool = ledger.sweep_dir(SWEEP) / "mirror-spool.jsonl"
    spool.parent.mkdir(parents=True)
    spool.write_text(json.dumps({"cell": cell}) + "\n")
    mirror(ledger, {})
    assert child_of(ledger, cell).info.run_name == str(coordinates(2))
    spool.write_text("half a li")
    mirror(ledger, {})
    assert "is no spool" in caplog.text


# Roots with names of their own, and roots that move


def test_root_whose_name_means_something_in_an_address_gets_its_store_and_nothing_beside_it(tmp_path):
    ledger = Ledger.open(tmp_path / "100% a%20b?c#d é +")
    cell = write(ledger)
    mirror(ledger, {cell: coordinates(2)})
    assert [path.name for path in tmp_path.iterdir()] == [ledger.root.name]
    assert {"mlflow.db", "mlflow-artifacts"} <= {path.name for path in ledger.root.iterdir()}
    client = MlflowClient(client_address(resolve_uri("", ledger.root)))
    (experiment,) = client.search_experiments(filter_string=f"name = '{SWEEP}'")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`massive_sft.cell` = '{cell}'")
    assert "record.json" in files_of(client, run.info.run_id)
    mirror(ledger, {cell: coordinates(2)})
    assert [path.name for path in tmp_path.iterdir()] == [ledger.root.name]


def as_a_new_process() -> None:
    """Forget the artifact folders that MLflow remembers of each run for the life of its process."""
    _artifact_repos_cache.clear()


def artifacts_of(root: Path) -> dict[Path, bytes]:
    folder = root / "mlflow-artifacts"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("as_path", [False, True], ids=["as now", "as earlier versions wrote it"])
def test_artifacts_follow_a_root_that_moved(ledger, tmp_path, as_path):
    one, two = write(ledger, 1), cell_id(2)
    names = {cell: coordinates(2) for cell in (one, two)}
    mirror(ledger, names)
    if as_path:
        with contextlib.closing(sqlite3.connect(ledger.root / "mlflow.db")) as database:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                database.execute(f"update {table} set {column} = replace({column}, 'file://', '')")
            database.commit()
    ledger.root.rename(tmp_path / "moved")
    as_a_new_process()
    moved = Ledger.open(tmp_path / "moved")
    before = artifacts_of(moved.root)
    write(moved, 1, scores={"p1": benchmark(0.75)})
    write(moved, 2)
    mirror(moved, names)
    assert not ledger.root.exists()
    after = artifacts_of(moved.root)
    assert before.keys() < after.keys()
    for cell in names:
        assert "record.json" in files_of(MlflowClient(uri_of(moved)), child_of(moved, cell).info.run_id)


def test_copied_root_and_its_original_keep_their_artifacts_apart(ledger, tmp_path):
    names = {write(ledger, 1): coordinates(2), cell_id(2): coordinates(2)}
    mirror(ledger, names)
    shutil.copytree(ledger.root, tmp_path / "copy")
    copy = Ledger.open(tmp_path / "copy")
    before = artifacts_of(ledger.root)
    as_a_new_process()
    write(copy, 2)
    mirror(copy, names)
    as_a_new_process()
    assert artifacts_of(ledger.root) == before
    copied = artifacts_of(copy.root)
    assert len(copied) > len(before)
    write(ledger, 2)
    mirror(ledger, names)
    assert artifacts_of(copy.root) == copied


def test_artifacts_that_somebody_put_elsewhere_stay_there(ledger, tmp_path):
    MlflowClient(uri_of(ledger)).create_experiment(SWEEP, artifact_location=(tmp_path / "elsewhere").as_uri())
    mirror(ledger, {write(ledger, 1): coordinates(2)})
    assert list((tmp_path / "elsewhere").rglob("record.json"))


def test_root_that_is_reached_by_a_link_does_not_move_its_artifacts(ledger, tmp_path):
    names = {write(ledger, 1): coordinates(2)}
    mirror(ledger, names)
    (tmp_path / "link").symlink_to(ledger.root)
    before = runs_of(uri_of(ledger))[0].info.artifact_uri
    mirror(Ledger.open(tmp_path / "link"), names, f"sqlite:///{tmp_path}/link/mlflow.db")
    assert runs_of(uri_of(ledger))[0].info.artifact_uri == before


# Trackers that are not there


@pytest.mark.parametrize("uri", ["http://me:hunter2@127.0.0.1:9", "ftp://me:hunter2@host"])
def test_tracker_that_is_not_there_at_the_start_is_the_users_mistake(ledger, uri):
    with pytest.raises(InvalidInput, match=r"tracking\.mlflow") as refusal:
        Mirror.open(ledger, SWEEP, {}, uri)
    assert refusal.value.exit_code == 2
    assert "hunter2" not in str(refusal.value)


def test_sweep_whose_tracker_is_not_there_is_refused_before_anything_is_trained(tmp_path):
    sweep = sweep_at(tmp_path, tracking={"mlflow": "http://127.0.0.1:9"})
    code, printed = command("run", sweep, "--inline", out=tmp_path / "out")
    assert code == 2
    assert "tracking.mlflow: is no tracking server that answers" in printed
    assert not list(tmp_path.glob("ledger/*/*/attempts"))


def test_experiment_in_the_trackers_trash_is_said_with_the_remedy(ledger):
    client = MlflowClient(uri_of(ledger))
    client.delete_experiment(client.create_experiment(SWEEP))
    with pytest.raises(InvalidInput, match="in its trash: `mlflow experiments restore"):
        Mirror.open(ledger, SWEEP, {}, "")
    assert Lease.acquire(ledger.sweep(SWEEP).at("mirror-lease"), "next") is not None


def test_database_of_something_else_is_refused_and_stays_as_it_is(ledger, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("create table runs (a)")
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(InvalidInput, match="something else than MLflow"):
        Mirror.open(ledger, SWEEP, {}, f"sqlite:///{tmp_path}/other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_database_of_another_version_of_mlflow_is_refused_with_a_sentence(ledger):
    with contextlib.closing(sqlite3.connect(ledger.root / "mlflow.db")) as database:
        database.executescript("update alembic_version set version_num = '0'")
    with pytest.raises(
        InvalidInput, match=r"is the store of another MLflow: .* `mlflow db upgrade sqlite:///.*mlflow.db`"
    ):
        Mirror.open(ledger, SWEEP, {}, "")


class Server:
    """A real tracking server on a fixed port that can be killed and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://{CANARY}:{CANARY}@127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = start_function(tracking_server.serve, self.folder, self.port)
        until(self.answers)

    def answers(self) -> bool:
        return is_healthy(self.port)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.join()

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory, empty_store):
    """One for several tests, each with a sweep of its own: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store)
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_tracker_lost_in_between_is_caught_up_and_secrets_never_reach_it(ledger, server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirroring, "MAX_DELAY_S", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", CANARY)
    monkeypatch.setenv("TRACKER", server.uri)
    caplog.set_level(logging.DEBUG, logger="massive_sft")
    (tmp_path / "sweep.yaml").write_text(f"tracking: {{mlflow: '{server.uri}'}}\n")
    names = {cell_id(number): coordinates(2) for number in (1, 2, 3)}
    spool = ledger.sweep_dir(SWEEP) / "mirror-spool.jsonl"
    write_losses(ledger, steps=4, epochs=2)
    running = Mirror.open(ledger, SWEEP, names, "${TRACKER}")
    running.artifact(tmp_path / "sweep.yaml")
    running.put(write(ledger, 1, status=Status.FAILED, error=f"GET {server.uri}: token={CANARY}"))
    until(lambda: not running.pending)

    server.kill()
    began = time.monotonic()
    running.put(write(ledger, 2))
    running.put(write(ledger, 3, provenance={"argv": f"run --token={CANARY}"}))
    assert time.monotonic() - began < 1
    until(lambda: running.problem and spool.exists() and len(spool.read_text().splitlines()) == 2)
    left = running.close(timeout_s=20)
    assert set(left.items) == {cell_id(2), cell_id(3)}
    assert left.reason and CANARY not in left.reason
    with pytest.raises(InvalidInput, match="tracking server that answers"):
        Mirror.open(ledger, SWEEP, names, "${TRACKER}")

    server.start()
    again = Mirror.open(ledger, SWEEP, names, "${TRACKER}")
    until(lambda: not again.pending)
    assert not again.close()
    assert not spool.exists()
    assert set(runs_of(f"http://127.0.0.1:{server.port}")[1]) == set(names)
    assert "tracker is lost" in caplog.text
    assert CANARY not in caplog.text
    written = [tmp_path / "mlflow.db", *(tmp_path / "artifacts").rglob("*")]
    assert {"record.json", "sweep.yaml"} <= {path.name for path in written}
    assert not [path for path in written if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_tracker_that_stands_still_holds_nobody_up_and_is_caught_up(ledger, shared_server, monkeypatch):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(mirroring, "MAX_DELAY_S", 0.2)
    monkeypatch.setattr(connection_check, "TIMEOUT_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    names = {cell_id(number): coordinates(2) for number in (1, 2, 3)}
    uri = shared_server.uri
    running = Mirror.open(ledger, "still", names, uri)
    shared_server.signal(signal.SIGSTOP)
    began = time.monotonic()
    running.put(write(ledger, 1))
    assert time.monotonic() - began < 0.5
    until(lambda: running.problem)
    shared_server.signal(signal.SIGCONT)
    until(lambda: not running.pending)
    shared_server.signal(signal.SIGSTOP)
    began = time.monotonic()
    running.put(write(ledger, 2))
    left = running.close(timeout_s=20)
    assert time.monotonic() - began < 10
    assert left.items == (cell_id(2),)
    with pytest.raises(InvalidInput, match="tracking server that answers"):
        Mirror.open(ledger, "still", names, uri)
    shared_server.signal(signal.SIGCONT)
    write(ledger, 3)
    mirror(ledger, names, uri, "still")
    assert set(runs_of(uri, "still")[1]) == set(names)


def test_tracker_restarted_in_between_is_gone_on_with_and_its_deleted_store_rebuilt_run_for_run(
    ledger, shared_server, monkeypatch, empty_store
):
    monkeypatch.setattr(mirroring, "MAX_DELAY_S", 0.2)
    write_losses(ledger, steps=4, epochs=2)
    names = {cell_id(1): coordinates(1), cell_id(2): coordinates(2)}
    uri = shared_server.uri
    running = Mirror.open(ledger, "restarted", names, uri)
    running.put(write(ledger, 1, 1))
    until(lambda: not running.pending)
    shared_server.kill()
    running.put(write(ledger, 2))
    until(lambda: running.problem)
    shared_server.start()
    until(lambda: not running.pending and not running.problem)
    assert not running.close()
    before = everything(uri, "restarted")
    assert before.keys() == {"restarted", *names}
    assert {"record.json", "cell.json"} <= before[cell_id(2)]["files"].keys()

    shared_server.kill()
    shutil.rmtree(shared_server.folder / "artifacts")
    (shared_server.folder / "mlflow.db").write_bytes(empty_store)
    shared_server.start()
    mirror(ledger, names, uri, "restarted")
    assert everything(uri, "restarted") == before


class Slow(ThreadingHTTPServer):
    """A proxy before a server that keeps the next ``create_run`` back until ``let_go``, then sends it on after all."""

    def __init__(self, server: Server):
        super().__init__(("127.0.0.1", 0), Forward)
        self.server, self.armed = server, False
        self.let_go, self.sent = threading.Event(), threading.Event()
        self.uri = f"http://127.0.0.1:{self.server_port}"


class Forward(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hold = self.path.endswith("runs/create") and self.server.armed
        if hold:
            self.server.armed = False
            self.server.let_go.wait(60)
        onward = http.client.HTTPConnection("127.0.0.1", self.server.server.port)
        headers = {key: value for key, value in self.headers.items() if key != "Host"}
        onward.request(self.command, self.path, body, headers)
        answer = onward.getresponse()
        content = answer.read()
        if hold:
            self.server.sent.set()
        with contextlib.suppress(OSError):  # whoever asked has given up
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_PATCH = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_call_that_is_served_after_it_was_given_up_leaves_no_second_run(ledger, shared_server, monkeypatch, caplog):
    monkeypatch.setattr(mirroring, "FIRST_DELAY_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    names = {cell_id(1): coordinates(2)}
    with Slow(shared_server) as slow, contextlib.ExitStack() as at_end:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        at_end.callback(slow.shutdown)  # it would spin for ever once its socket is closed
        running = Mirror.open(ledger, "late", names, slow.uri)
        slow.armed = True
        running.put(write(ledger))
        until(lambda: not running.pending)
        slow.let_go.set()
        assert slow.sent.wait(10)
        assert not running.close()
    client = MlflowClient(shared_server.uri)
    experiment = client.get_experiment_by_name("late").experiment_id
    assert len(client.search_runs([experiment], run_view_type=ViewType.ALL)) == 3, "it was made twice"
    (run,) = client.search_runs([experiment], f"tags.`massive_sft.cell` = '{cell_id(1)}'")
    assert run.data.tags["massive_sft.record"]
    assert "had a second run" in caplog.text


def test_mirror_prints_nothing_and_leaves_nothing_in_the_working_folder(ledger, tmp_path):
    cell = write(ledger)
    (ledger.root / "mlflow.db").unlink()
    code = (
        "from pathlib import Path; from massive_sft.ledger.store import Ledger; "
        "from massive_sft.sweep.cell import Coordinates; from massive_sft.tracking.mirror import mirror_all; "
        f"cells = {{{cell!r}: {coordinates(2)!r}}}; "
        f"exit(bool(mirror_all(Ledger.open({str(ledger.root)!r}), 'study', cells, '')))"
    )
    here = tmp_path / "here"
    here.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, env=environment, check=True
    )
    assert (done.stdout, done.stderr, list(here.iterdir())) == ("", "", [])


def test_second_connection_finds_the_runs_of_the_first(ledger):
    origin = Origin(SWEEP, str(ledger.root), "here")
    for name in ("first", "second"):
        Tracker(uri_of(ledger), origin, lambda: CREATED_MS, Shown(ledger.root / name), ledger.root).recall()
    assert runs_of(uri_of(ledger))[0].info.start_time == CREATED_MS
