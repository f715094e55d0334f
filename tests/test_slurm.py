"""``cluster/slurm.sh``: on the real daemons of Slurm where they are, and what it decides with stand-ins for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Slurm, find_slurm, running_slurm
from small_sweep import small_sweep

from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.running.inline import run_inline
from massive_sft.sweep.load import load_sweep

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "cluster/slurm.sh"

# ---- what it decides, with stand-ins for Slurm's commands, Ray and the run

STANDINS = {
    "srun": 'case "$*" in *getent*) echo "$HEAD_IP"; echo elsewhere;; *) echo $$ >> steps; exec sleep "${RAY_S:-60}";; esac',
    "scancel": "kill $(cat steps); touch signalled",
    "scontrol": 'case "$*" in *hostnames*) printf "a\\nb\\n";; *node*) echo "NodeAddr=a NodeHostName=a";;'
    ' *"show job"*) echo "JobState=$STATE Reason=None";; requeue*) echo "$2" >> requeued;; esac',
    "ray": "exit 0",
    "python": "echo 2",
    "massive-sft": 'echo "$@" at "$RAY_ADDRESS" >> ran; [ "$STATE" = RUNNING ] || kill $(cat steps); exit "$CODE"',
}
# On the real Slurm: a Ray that stays until a signal, in its folder, and a run that takes two seconds for a checkpoint.
IDLE = {
    "ray": """[ "$1" = start ] || exit 0
        for word in "$@"; do case $word in --temp-dir=*) mkdir "${word#*=}";; esac; done
        trap 'echo "Ray ends on $SLURMD_NODENAME"; exit' TERM; echo "Ray on $SLURMD_NODENAME: $*"; while :; do sleep 0.2; done""",
    "python": "echo 2",
    "massive-sft": """trap 'sleep 2; echo checkpoint; exit 75' TERM
        echo "run $SLURM_RESTART_COUNT at $RAY_ADDRESS"; while :; do sleep 0.2; done""",
}


def environment_of(folder: Path, programs: dict[str, str]) -> Path:
    """Make an environment whose programs are stand-ins; return the folder that has it."""
    place = folder / ".venv/bin"
    place.mkdir(parents=True)
    (place / "activate").write_text(f'export PATH="{place}:$PATH"\n')
    for name, text in programs.items():
        (place / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / name).chmod(0o755)
    return folder


@pytest.fixture
def standins(tmp_path: Path) -> Path:
    return environment_of(tmp_path, STANDINS)


def run_script(folder: Path, code: int, state: str = "RUNNING", restarts: int = 0, **environment: str) -> int:
    own = {
        "CODE": str(code),
        "STATE": state,
        "HEAD_IP": "10.1.2.3",
        "SLURM_RESTART_COUNT": str(restarts),
        **environment,
    }
    job = {"SLURM_JOB_ID": "4321", "SLURM_JOB_NODELIST": "a,b", "SLURM_CPUS_PER_TASK": "3"}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **own, **job}
    return subprocess.run(["bash", str(SCRIPT), "x.yaml"], env=environment, cwd=folder, timeout=60).returncode


@pytest.mark.parametrize(
    ("code", "state", "restarts", "again"),
    [
        *((75, "RUNNING", 0, True), (0, "RUNNING", 0, False), (1, "RUNNING", 0, False), (2, "RUNNING", 0, False)),
        *((75, "CANCELLED", 0, False), (75, "COMPLETING", 0, False), (75, "RUNNING", 20, False)),
        *((143, "RUNNING", 0, True), (130, "RUNNING", 0, False)),
    ],
)
def test_job_goes_back_into_the_queue_where_another_time_may_get_further(
    code: int, state: str, restarts: int, again: bool, standins: Path
) -> None:
    assert run_script(standins, code, state, restarts=restarts) == code
    assert (standins / "ran").read_text() == "run x.yaml at 10.1.2.3:23210\n"
    assert (standins / "requeued").exists() is again
    assert (standins / "signalled").exists() is (state == "RUNNING"), "Slurm has sent one already"


def test_head_whose_name_is_a_loopback_address_on_other_nodes_is_refused(standins: Path) -> None:
    assert run_script(standins, 0, HEAD_IP="127.0.1.1") == 2
    assert not (standins / "ran").exists()


def test_job_whose_ray_does_not_come_up_is_tried_another_time(standins: Path) -> None:
    (standins / ".venv/bin/ray").write_text('#!/bin/bash\n[ "$1" != health-check ]\n')
    assert run_script(standins, 0, RAY_S="0.2") == 75
    assert not (standins / "ran").exists()
    assert (standins / "requeued").read_text() == "4321\n"


# ---- the real thing


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    root = find_slurm()
    if root is None:
        pytest.skip("needs Slurm's daemons: on PATH, or unpacked below $SLURM_ROOT (tests/slurm_cluster.py)")
    if os.geteuid() != 0:
        pytest.skip("needs root: Slurm's daemons start jobs of other users")
    folder = Path(tempfile.mkdtemp(prefix="msft-slurm-", dir="/tmp"))
    try:
        with running_slurm(root, folder, cpus=1) as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.5)


def results(path: Path) -> dict[str, tuple[object, object]]:
    ledger = Ledger.open(make_plan(load_sweep(path)).root, create=False)
    return {
        record.cell: (record.scores, record.measures) for record in ledger.records() if record.status is Status.COMPLETE
    }


def submit(slurm: Slurm, folder: Path, **environment: str) -> tuple[str, Path]:
    """Submit the script from a folder for two nodes of one CPU; return the job and the file that it prints to."""
    out = folder / "out.txt"
    sized = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=30"]
    words = ["sbatch", "--parsable", f"--chdir={folder}", f"--output={out}", *sized, str(SCRIPT), "sweep.yaml"]
    own = {"RAY_TMPDIR": slurm.environment["HOME"]}
    return Slurm({**slurm.environment, **own, **environment}).call(*words).strip(), out


def start_soon(slurm: Slurm, job: str) -> None:
    """Have a requeued job start before its two minutes are over, but not before its nodes let it in again."""
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now+15")


def folders_of_ray(slurm: Slurm) -> list[Path]:
    return list(Path(slurm.environment["HOME"]).glob("ray-*"))


@pytest.mark.long
def test_job_of_slurm_goes_on_after_its_signal_and_after_a_requeue_and_ends_when_it_is_cancelled(
    slurm: Slurm, tmp_path: Path
) -> None:
    job, out = submit(slurm, environment_of(tmp_path, IDLE))
    told = out.read_text

    def starts_anew(times: int) -> None:
        wait_for(lambda: slurm.job(job)["Restarts"] == str(times) and slurm.job(job)["JobState"] == "PENDING", 60, told)
        start_soon(slurm, job)
        wait_for(lambda: f"run {times} at" in told(), 60, told)

    wait_for(lambda: out.exists() and "run  at 127.0.0.1:" in told(), 60, lambda: "nothing was printed")
    slurm.call("scancel", "--batch", "--signal=TERM", job)  # as Slurm does before the time limit
    starts_anew(1)
    first = told().partition("run 1 at")[0]
    assert first.index("checkpoint") < first.index("Ray ends on n1") < first.index("exit 75: back into the queue")
    slurm.call("scontrol", "requeue", job)  # as a preemption does
    starts_anew(2)
    slurm.call("scancel", job)
    wait_for(lambda: slurm.job(job)["JobState"] == "CANCELLED" and not folders_of_ray(slurm), 60, told)
    assert slurm.job(job)["Restarts"] == "2"
    port = 20000 + int(job) % 1000 * 10
    assert (
        f"Ray on n1: start --block --disable-usage-stats --temp-dir={slurm.environment['HOME']}/ray-{job}-n1 --num-cpus=1 "
        in told()
    )
    assert f"--dashboard-agent-listen-port={port + 4} --address=127.0.0.1:{port}\n" in told()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_sweep_on_two_nodes_of_slurm_is_requeued_twice_and_ends_as_one_that_nobody_disturbed(
    slurm: Slurm, tmp_path: Path
) -> None:
    """First by the signal that Slurm sends before the time limit, then by ``scontrol requeue``, as a preemption does."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"]}
    block |= {"schedule": "constant", "horizon": 30, "snapshots": [30]}
    long = {"mixtures": {"one": {"each": "facts", "samples": 192}}, "blocks": [block]}
    path = small_sweep(tmp_path, **long)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "HF_HOME") if name in os.environ}
    job, out = submit(slurm, tmp_path, **kept, HOME=str(tmp_path))

    def told() -> str:
        return out.read_text() if out.exists() else "nothing was printed"

    def trains(times: int) -> bool:
        assert slurm.job(job)["JobState"] not in ("FAILED", "COMPLETED", "CANCELLED", "NODE_FAIL"), told()
        return told().count("tracker: ") == times and "training llama" in told().rpartition("tracker: ")[2]

    wait_for(lambda: trains(1), 300, told)
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", 120, told)
    assert "SIGTERM: ending after the step or shard in hand" in told() and "exit 75: back into the queue" in told()
    start_soon(slurm, job)
    wait_for(lambda: trains(2), 300, told)
    slurm.call("scontrol", "requeue", job)
    wait_for(lambda: slurm.job(job)["Restarts"] == "2", 120, told)
    start_soon(slurm, job)
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", 400, told)
    assert "3 COMPLETE" in told()
    assert not folders_of_ray(slurm)

    undisturbed = small_sweep(tmp_path / "alone", **long)
    run_inline(make_plan(load_sweep(undisturbed)), lambda _: None)
    disturbed, expected = results(path), results(undisturbed)
    assert len(expected) == 3
    assert [cell for cell in disturbed | expected if disturbed.get(cell) != expected.get(cell)] == []
