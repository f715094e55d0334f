"""What ranks say to each other goes by gloo, whatever their process group is, and waits longer than that may."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from commands import end, start_session

from massive_sft.training.ranks import all_ranks, broadcast_from_rank0, from_all_ranks, group_of_a_thread

LIMIT_S = 1.0  # of the process group: half an hour in a lane


def wait_for_an_order(rank: int, folder: Path) -> None:
    """As a lane of two workers does that has nothing to do for longer than the process group's limit."""
    place = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", place, rank=rank, world_size=2)
    assert all_ranks(True)
    assert not all_ranks(rank == 0)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=LIMIT_S))

    def late() -> str:
        time.sleep(3 * LIMIT_S)
        return "order"

    (folder / str(rank)).write_text(broadcast_from_rank0(late))


def test_rank_that_waits_for_longer_than_the_limit_of_collectives_lives(tmp_path: Path) -> None:
    ranks = [start_session(wait_for_an_order, rank, tmp_path) for rank in range(2)]
    assert [end(rank, 100) for rank in ranks] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["order", "order"]


def talk(rank: int, folder: Path) -> None:
    """In a process group that is another than gloo's, as on GPUs: in this one, of torch's own tests, nothing is sent."""
    dist.init_process_group("fake", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    beside = group_of_a_thread()
    said = from_all_ranks(rank), broadcast_from_rank0(lambda: f"of {rank}"), from_all_ranks(-rank, beside)
    (folder / str(rank)).write_text(str(said))


def test_ranks_of_a_process_group_that_is_not_gloo_talk_by_gloo(tmp_path: Path) -> None:
    ranks = [start_session(talk, rank, tmp_path) for rank in range(2)]
    assert [end(rank, 100) for rank in ranks] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["([0, 1], 'of 0', [0, -1])"] * 2
