"""The script that starts a head on this machine, with a stand-in for ``ray`` that starts late."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "cluster" / "single-node.sh"

# As Ray 2.60 ends where its node is not up in 30 s; and one that stays until it is told to go.
RAY = """#!/bin/bash
[[ $1 == start ]] || exit 0
trap "exit 7" TERM
echo "$*" >> started
if (($(wc -l < started) < 3)); then
  echo "Exception: The current node timed out during startup." >&2
  exit 1
fi
while true; do sleep 0.05; done
"""


def test_head_that_starts_too_late_for_ray_is_started_again_and_ends_with_the_script(tmp_path: Path) -> None:
    for name, text in {"ray": RAY, "massive-sft": ""}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"RUNS": str(tmp_path / "runs"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = subprocess.Popen([SCRIPT, "--port=1"], env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    started = tmp_path / "started"
    while not started.exists() or started.read_text().count("\n") < 3:
        assert script.poll() is None
        time.sleep(0.01)
    assert all("--head --block" in line and line.endswith("--port=1") for line in started.read_text().splitlines())
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 7
