"""A Slurm of this machine alone, with its real daemons: two virtual nodes, and ports, sockets and folders of its own.

Nothing is installed: ``$SLURM_ROOT`` names a folder that Debian's packages were unpacked into,

    apt-get download slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15
    for package in *.deb; do dpkg -x "$package" "$SLURM_ROOT"; done

or the daemons are on ``PATH``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
NODES = ("n1", "n2")


def find_slurm() -> Path | None:
    """Return the folder that Slurm's packages are below; None where there are none."""
    named = os.environ.get("SLURM_ROOT")
    if named is None:
        return Path("/") if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged") else None
    return Path(named) if list(Path(named).glob("usr/sbin/slurmctld*")) else None


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        environment: what its commands need.
    """

    environment: dict[str, str]

    def call(self, *words: str) -> str:
        """Run one of its commands; return what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """Return a job's fields."""
        words = self.call("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(root: Path, folder: Path, cpus: int) -> str:
    """Return slurm.conf. No cgroups and no users: what is tested is the script."""
    host = socket.gethostname().partition(".")[0]
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "AuthInfo": f"socket={folder}/munge/socket",
        "SlurmctldPort": free_port(),
        "PluginDir": root / LIBRARIES / "slurm-wlm",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "ReturnToService": 2,
        "KillWait": 30,
        "PropagateResourceLimits": "NONE",
    }
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cpus} State=UNKNOWN"
        for name in NODES
    ]
    partition = f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
    return "\n".join([*(f"{name}={value}" for name, value in lines.items()), *nodes, partition, ""])


@contextmanager
def running_slurm(root: Path, folder: Path, cpus: int) -> Iterator[Slurm]:
    """Start munged, slurmctld and two slurmd; end them, and only them, afterwards.

    Args:
        root: as of ``find_slurm``.
        folder: an empty folder for all that they write; short, for the path of munge's socket.
        cpus: of each virtual node.
    """
    for name, mode in (("munge", 0o700), ("state", 0o755)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(configuration(root, folder, cpus))
    paths = {"PATH": f"{root}/usr/bin:{root}/usr/sbin:/usr/bin:/bin"}
    if root != Path("/"):  # else Python would get the system's libraries before its own
        paths["LD_LIBRARY_PATH"] = f"{root}/{LIBRARIES}:{root}/{LIBRARIES}/slurm-wlm"
    slurm = Slurm({"SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder), **paths})
    files = {name: f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", f"--key-file={key}"]
    stepd = program(root, "slurmstepd")
    commands = [[program(root, munged[0]), *munged[1:], *files.values()], [program(root, "slurmctld"), "-D", "-i"]]
    commands += [[program(root, "slurmd"), "-D", "-N", name, "-d", stepd] for name in NODES]
    daemons = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"daemon-{number}.out").open("wb") as out:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env=slurm.environment,
                        stdout=out,
                        stderr=out,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
            if number == 0:
                wait_for_file(folder / "munge/socket")
        end = time.monotonic() + 60
        while slurm_states(slurm) != {"idle"}:
            assert time.monotonic() < end, "the nodes did not come up"
            time.sleep(0.2)
        try:
            yield slurm
        finally:
            end_jobs(slurm)
    finally:
        for daemon in reversed(daemons):
            with suppress(ProcessLookupError):
                os.kill(daemon.pid, signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def end_jobs(slurm: Slurm) -> None:
    """Cancel what is left: it would outlive the daemons."""
    slurm.call("scancel", "--user=root")
    end = time.monotonic() + 90
    while slurm.call("squeue", "--noheader").strip():
        assert time.monotonic() < end, "jobs do not end"
        time.sleep(0.2)


def program(root: Path, name: str) -> str:
    """Return a daemon's path; Debian gives those of Slurm a suffix."""
    return str(next(path for path in (root / f"usr/sbin/{name}-wlm", root / f"usr/sbin/{name}") if path.exists()))


def slurm_states(slurm: Slurm) -> set[str]:
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], env=slurm.environment, capture_output=True, text=True)
    return set(done.stdout.split())


def wait_for_file(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)
