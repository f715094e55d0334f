"""What the command line ends with: one table, and errors and stops that keep to it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from massive_sft.core.errors import ClusterLost, ExitCode, Interrupted, InvalidInput, LedgerError, Unsupported
from massive_sft.core.stop import StopSignal
from massive_sft.scheduling import cluster
from massive_sft.scheduling.experiment import TrialsLost
from massive_sft.scheduling.watchdog import Stuck

TABLE = (Path(__file__).parent.parent / "docs/reliability.md").read_text().partition("## Exit codes")[2]


def test_table_of_exit_codes_is_complete() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", TABLE, re.M)] == sorted(ExitCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput, ExitCode.INVALID),
        (Unsupported, ExitCode.INVALID),
        (LedgerError, ExitCode.INCOMPLETE),
        (Interrupted, ExitCode.INTERRUPTED),
        (ClusterLost, ExitCode.TRY_AGAIN),
        (Stuck, ExitCode.TRY_AGAIN),
        (TrialsLost, ExitCode.TRY_AGAIN),
    ],
)
def test_error_says_whether_another_run_may_get_further(error: type, code: ExitCode) -> None:
    assert error.exit_code == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [("Ctrl-C", 130), ("massive-sft cancel", 130), ("SIGHUP (its terminal was closed)", 130), ("SIGTERM", 75)],
)
def test_scheduler_may_undo_its_own_stop_and_no_persons(reason: str, code: int) -> None:
    stop = StopSignal()
    stop.request(reason)
    stop.request("SIGTERM")
    assert stop.exit_code == code


def test_answer_that_ray_can_no_longer_give_is_a_lost_cluster_and_a_mistake_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "_start", lambda _: None)
    with pytest.raises(ClusterLost, match="run the same command to go on"), cluster.connected():
        raise ActorUnavailableError("The actor's node has died.", None)
    with pytest.raises(RayTaskError), cluster.connected():
        raise RayTaskError("lacks", "Traceback", ValueError("x"))


def test_request_is_heard_after_a_moment_in_which_the_store_could_not_be_asked() -> None:
    stop, said, answers = StopSignal(), list[str](), iter([PermissionError("the token has expired"), None])

    def is_requested() -> bool:
        error = next(answers)
        if error is not None:
            raise error
        return True

    with stop.handle_signals(is_requested, said.append):
        until_s = time.monotonic() + 10
        while not said and time.monotonic() < until_s:
            time.sleep(0.01)
    assert stop.reason == "massive-sft cancel"
    assert len(said) == 1
