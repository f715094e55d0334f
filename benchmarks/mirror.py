"""How long a run waits for its tracker to begin with, and for the mirror to know what it shows, by the number of runs.

    python benchmarks/mirror.py [--runs N] [--metrics N] [--folder FOLDER]

A real MLflow server with SQLite whose rows are written straight into its tables, as the mirror would have written them,
and a ledger with the same records, of which nothing is left to mirror. ``opened`` is what a run waits for before it
begins (``Mirror.open``), ``known`` also has the comparison of all runs and records, to the end of ``close``. The first
connection finds nothing noted down beside the ledger, the second what the first noted down.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from massive_sft.ledger.record import BenchmarkScores, Record, Revision, Score, Status, dump_record
from massive_sft.ledger.store import Ledger
from massive_sft.sweep.cell import Coordinates
from massive_sft.tracking.mirror import Mirror
from massive_sft.tracking.run_fields import describe_record, version
from massive_sft.tracking.store import make_store
from massive_sft.tracking.ui import quiet_environment

SWEEP = "benchmark"
WHEN = "2026-01-31T12:00:00+00:00"


def make_record(number: int, metrics: int) -> Record:
    """Return the record of a trained cell with so many scores."""
    value = Score(value=number / 1e6, stderr=None, interval=None, method=None, n=100, higher_is_better=True)
    tasks = {f"task_{part}": {"acc,none": value} for part in range(metrics)}
    scores = BenchmarkScores(benchmark="many-0shot", asked="many@0 0", shots=0, tasks=tasks)
    return Record(
        cell=f"{number:016x}",
        trajectory=f"{number:016x}",
        coordinates=names_of(number)._asdict(),
        status=Status.COMPLETE,
        attempt=1,
        scores={"aaaaaaaaaaaa": scores},
        training={"seconds": 60.0, "steps": 100},
        provenance={},
        created=WHEN,
        finished=WHEN,
    )


def names_of(number: int) -> Coordinates:
    return Coordinates("model", "data", "full", "full", 100, "constant", None, 1, number, "")


def make_ledger(folder: Path, records: list[Record]) -> Ledger:
    """Write records as a ledger holds them, without a flush to the disk for each."""
    ledger = Ledger.open(folder)
    for record in records:
        path = ledger.record_path(record.cell, Revision(0, 1))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dump_record(record))
    return ledger


def fill_store(path: Path, ledger: Ledger, records: list[Record]) -> None:
    """Write rows for the parent and each cell into a new store's tables."""
    make_store(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("pragma synchronous = off")
        (experiment,) = database.execute(
            "insert into experiments (name, artifact_location, lifecycle_stage, workspace) values (?, ?, 'active', 'default')"
            " returning experiment_id",
            (SWEEP, f"mlflow-artifacts:/{SWEEP}"),
        ).fetchone()
        columns = "(run_uuid, name, user_id, source_type, status, start_time, end_time, lifecycle_stage, artifact_uri, experiment_id)"
        add_run = f"insert into runs {columns} values (?, ?, 'me', 'UNKNOWN', 'FINISHED', ?, ?, 'active', ?, ?)"
        add_tag = "insert into tags (run_uuid, key, value) values (?, ?, ?)"
        parent = uuid.uuid4().hex
        place = f"mlflow-artifacts:/{SWEEP}"
        database.execute(add_run, (parent, SWEEP, 1, 2, f"{place}/{parent}", experiment))
        of_parent = {"massive_sft.sweep": SWEEP, "massive_sft.ledger": str(ledger.root)}
        database.executemany(add_tag, [(parent, *tag) for tag in of_parent.items()])
        for number, record in enumerate(records):
            run, shown = uuid.uuid4().hex, describe_record(record, {}, names_of(number), str(ledger.root))
            checksum, gains = version(record, None)
            tags = {"massive_sft.parent": parent, "massive_sft.cell": record.cell, "massive_sft.record": checksum}
            tags = {**shown.tags, **tags, "massive_sft.gains": gains, "massive_sft.written": "1"}
            database.execute(add_run, (run, shown.name, shown.start, shown.end, f"{place}/{run}", experiment))
            database.executemany(add_tag, [(run, *tag) for tag in tags.items()])
            database.executemany(
                "insert into params (run_uuid, key, value) values (?, ?, ?)",
                [(run, *param) for param in shown.params.items()],
            )
            database.executemany(
                "insert into latest_metrics (run_uuid, key, value, timestamp, step, is_nan) values (?, ?, ?, ?, ?, 0)",
                [(run, point.key, point.value, point.timestamp, point.step) for point in shown.points],
            )
        database.commit()


@contextmanager
def serve(path: Path) -> Iterator[str]:
    """Run MLflow's server on a store; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--backend-store-uri=sqlite:///{path}", f"--artifacts-destination={path.parent}/artifacts"]
    options += ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with (path.parent / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env=quiet_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def measure(ledger: Ledger, cells: dict[str, Coordinates], uri: str) -> tuple[float, float]:
    """Return the seconds until a run could begin, and until all is known to be mirrored."""
    began = time.perf_counter()
    mirror = Mirror.open(ledger, SWEEP, cells, uri)
    opened = time.perf_counter() - began
    left = mirror.close()
    assert not left, left
    return opened, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--metrics", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="kept, and gone on with; a temporary one if not given")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mirror-")))
        root = (folder / f"{options.runs}-{options.metrics}").absolute()
        cells = {f"{number:016x}": names_of(number) for number in range(options.runs)}
        if not root.exists():
            records = [make_record(number, options.metrics) for number in range(options.runs)]
            ledger = make_ledger(root / "ledger", records)
            fill_store(root / "mlflow.db", ledger, records)
        ledger = Ledger.open(root / "ledger")
        ledger.entries(cells)  # as the plan, which comes first, leaves the index
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{options.runs} runs of {options.metrics} metrics")
        uri = stack.enter_context(serve(root / "mlflow.db"))
        for what in ("first connection", "second connection"):
            opened, known = measure(ledger, cells, uri)
            print(f"{what}: opened {opened:.1f} s, known {known:.1f} s", flush=True)


if __name__ == "__main__":
    main()
