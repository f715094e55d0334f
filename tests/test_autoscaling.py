"""A cluster that has not, or not yet, what a rule asks for: what is said, what is waited for, what is asked of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from commands import call, start_session
from ray.util.placement_group import placement_group_table
from ray_heads import end_session, free_port, node_environment, node_options, start_ray, wait_for
from small_sweep import small_sweep

from massive_sft.core.errors import ExitCode, MassiveSFTError
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.running.events import ignore
from massive_sft.scheduling.cluster import connected
from massive_sft.scheduling.run_on_ray import run_on_ray
from massive_sft.sweep.load import load_sweep

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

# Of Ray's own autoscaler, whose nodes are more raylets of this machine: up to two of two CPUs each, for as long as they
# are of use.
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "grows",
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    # Of machines that it would set up; Ray asks for all of these keys.
    "docker": {},
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
}
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter")
LISTS += tuple(f"{of}setup_commands" for of in ("", "head_", "worker_"))
LISTS += tuple(f"{of}_start_ray_commands" for of in ("head", "worker"))


# Of Ray's second autoscaler, that of Kubernetes. Ray's wheel lacks the defaults of the provider ``fake_multinode``; as an
# external one the same code needs none.
HEAD_ID = f"{'f' * 51}00000"
SECOND = {"type": "external", "launch_multiple": True, "head_node_id": HEAD_ID}
SECOND |= {"module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"}
SECOND_ENVIRONMENT = {"RAY_enable_autoscaler_v2": "1"}
SECOND_ENVIRONMENT |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), HEAD_ID)
FIRST = {"type": "fake_multinode", "use_node_id_as_ip": True}  # else all nodes would have one address


@pytest.fixture(
    scope="module",
    params=[(SECOND, SECOND_ENVIRONMENT), pytest.param((FIRST, {}), marks=pytest.mark.long)],
    ids=["second", "first"],
)
def growing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a head of one CPU whose autoscaler adds nodes."""
    folder, port = tempfile.mkdtemp(prefix="msft-", dir="/tmp"), free_port()
    config = Path(folder, "autoscaler.json")
    provider, environment = request.param
    provider = provider | {"gcs_address": f"127.0.0.1:{port}", "disable_node_updaters": True}
    config.write_text(json.dumps(AUTOSCALER | {"provider": provider} | {name: [] for name in LISTS}))
    options = node_options(port=port, dashboard_agent_listen_port=free_port(), ray_client_server_port=free_port())
    options += ["--head", "--num-cpus=1", f"--temp-dir={folder}", f"--autoscaling-config={config}"]
    environment = environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    process = start_session(start_ray, options, node_environment(Path(folder)) | environment, folder)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join(5)
        end_session(process.pid)
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


def run_there(path: Path, address: str) -> None:
    """Run a sweep on a cluster; print what it says, what it claims afterwards, and how many nodes there are then."""
    os.environ |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    code = 0
    wait_for(lambda: answers(address), 120)
    with connected():
        try:
            run_on_ray(make_plan(load_sweep(path)), ignore, lambda text: print(text, flush=True))  # noqa: T201
        except MassiveSFTError as error:
            print("ENDED", error, flush=True)  # noqa: T201
            code = error.exit_code
        claims = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
        print("CLAIMS", claims, flush=True)  # noqa: T201
        wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, 120)
    os._exit(code)


def answers(address: str) -> bool:
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError):
        return False
    ray.shutdown()
    return True


def run(folder: Path, address: str, workers: int, **cluster: float) -> tuple[int, str]:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant"}
    block |= {"horizon": 1, "snapshots": [1]}
    nothing = {"evaluation": {"base": False, "tasks": []}, "measures": []}
    rules = [{"workers": workers, "zero": 2}]
    path = small_sweep(folder, blocks=[block], resources=rules, cluster=cluster, **nothing)
    return call(run_there, path, address, out=folder / "printed", seconds=400)


def test_cluster_without_what_a_rule_asks_ends_the_run_with_the_rule_and_what_is_there(
    growing: str, tmp_path: Path
) -> None:
    code, printed = run(tmp_path, growing, workers=3)
    assert code == ExitCode.INVALID, printed
    assert "resources[0]: asks for more workers than the 1 CPUs that the cluster has: 1 node with 1 CPU" in printed
    assert "CLAIMS []" in printed
    assert not list(Ledger.open(tmp_path / "ledger", create=False).records())


def test_run_that_is_told_to_wait_has_the_cluster_grow_and_gives_back_what_it_asked_for(
    growing: str, tmp_path: Path
) -> None:
    code, printed = run(tmp_path, growing, workers=2, wait=120)
    assert code == 0, printed
    assert "waits for nodes, for 120 s at most (cluster.wait): " in printed
    assert "lane 2 x " in printed
    (record,) = Ledger.open(tmp_path / "ledger", create=False).records()
    assert record.status is Status.COMPLETE
    assert "CLAIMS []" in printed, "else the cluster would keep its nodes"


def test_nodes_that_do_not_come_in_time_end_the_run_for_another_try(growing: str, tmp_path: Path) -> None:
    code, printed = run(tmp_path, growing, workers=30, wait=4)
    assert code == ExitCode.TRY_AGAIN, printed
    assert "ENDED no nodes came in 4 s (cluster.wait): " in printed
    assert "CLAIMS []" in printed
