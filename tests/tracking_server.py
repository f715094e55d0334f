"""``mlflow server`` as one process, a fork of what has imported it: as two of its own it takes five seconds to start."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from commands import print_to

from massive_sft.tracking.ui import quiet_environment


def serve(folder: Path, port: int) -> None:
    """Be a tracking server, and the leader of its group; store, artifacts and log are in ``folder``."""
    os.setsid()
    print_to(folder / "server.log")
    os.environ |= quiet_environment()
    from mlflow import server
    from mlflow.cli import cli

    server._exec_cmd = _become
    options = {"backend-store-uri": f"sqlite:///{folder}/mlflow.db", "host": "127.0.0.1", "workers": "1"}
    options |= {"port": str(port), "artifacts-destination": str(folder / "artifacts")}
    cli.main(["server", *(f"--{key}={value}" for key, value in options.items())])


def _become(command: list[str], extra_env: dict[str, str], **_: Any) -> None:
    """Go on as the ``python -m uvicorn ...`` that ``mlflow server`` starts."""
    os.environ |= extra_env
    for name in [name for name in sys.modules if name.startswith("mlflow.server")]:
        del sys.modules[name]  # it reads its settings when it is imported
    sys.argv = command[2:]
    runpy.run_module("uvicorn", run_name="__main__")
