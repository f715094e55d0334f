"""Two mounts of one folder, each with a cache of its own: NFS over the loopback, where root may make it.

``MASSIVE_SFT_MOUNTS=A:B`` names two others. Without either, tests that want them are skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def refusal() -> str:
    """Return why no NFS can be mounted here; empty when it can be tried."""
    if os.geteuid() != 0:
        return "only root can mount"
    if not any(line.split()[-1] in ("nfs", "nfs4") for line in Path("/proc/filesystems").read_text().splitlines()):
        return "this kernel has no NFS client (/proc/filesystems)"
    missing = [tool for tool in ("exportfs", "rpc.nfsd", "mount.nfs") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed (nfs-kernel-server)" if missing else ""


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    given = os.environ.get("MASSIVE_SFT_MOUNTS")
    if given:
        yield [Path(place) / tmp_path.name for place in given.split(":")]
        return
    if refusal():
        pytest.skip(f"no NFS: {refusal()}; MASSIVE_SFT_MOUNTS=A:B names two mounts of one folder")
    export, places = tmp_path / "export", [tmp_path / "a", tmp_path / "b"]
    for folder in (export, *places):
        folder.mkdir()
    done: list[list[str]] = []
    try:
        commands = [["exportfs", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=7", f"127.0.0.1:{export}"]]
        commands += [["rpc.nfsd", "2"]]
        # nosharecache: each mount is a client of its own, with its own old listings.
        commands += [["mount", "-t", "nfs4", "-o", "nosharecache", f"127.0.0.1:{export}", str(one)] for one in places]
        for command in commands:
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no NFS: {' '.join(command)}: {made.stderr.strip()}")
            done.append(command)
        yield [place / "root" for place in places]
    finally:
        for command in reversed(done):
            if command[0] == "mount":
                subprocess.run(["umount", "-l", command[-1]], check=False)
        subprocess.run(["exportfs", "-u", f"127.0.0.1:{export}"], check=False) if done else None
