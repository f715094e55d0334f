"""Leases: one owner at a time, taken over only from the gone, the stopped and the silent."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from massive_sft.core.errors import LeaseLost
from massive_sft.ledger import lease as lease_module
from massive_sft.ledger import process_identity
from massive_sft.ledger.lease import Lease, LeaseWatch
from massive_sft.ledger.run_requirements import is_still_required, publish_requirements
from massive_sft.ledger.runs import find_live_runs, register_run
from massive_sft.ledger.storage import Folder

TAKE = "import os; from massive_sft.ledger.lease import *; from massive_sft.ledger.storage import *; "
LONG = 1000.0  # seconds; the background thread never beats within a test


class Clock:
    """A monotonic clock that a test moves by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def acquire(folder, owner="a", watch=None, ttl_s=LONG):
    return Lease.acquire(Folder(folder), owner, watch, ttl_s)


def look(folder):
    return lease_module.read_lease(Folder(folder))


def test_lease_free_is_acquired_with_number_one(tmp_path):
    with acquire(tmp_path / "lease") as lease:
        assert lease.claim.number == 1
        assert lease.held()


def test_lease_held_is_refused_to_others(tmp_path):
    with acquire(tmp_path):
        assert acquire(tmp_path, "b") is None


def test_lease_released_is_acquired_at_once_with_the_next_number(tmp_path):
    first = acquire(tmp_path)
    first.release()
    second = acquire(tmp_path, "b")
    assert second.claim.number == 2
    assert not first.held()
    second.release()


def test_lease_release_twice_is_harmless(tmp_path):
    lease = acquire(tmp_path)
    lease.release()
    lease.release()
    with pytest.raises(LeaseLost, match="released"):
        lease.verify()


def test_lease_silent_for_its_ttl_is_taken_over(tmp_path):
    clock = Clock()
    watch = LeaseWatch(clock)
    first = acquire(tmp_path, ttl_s=50.0)
    assert acquire(tmp_path, "b", watch) is None
    clock.now = 49.9
    assert acquire(tmp_path, "b", watch) is None
    clock.now = 50.0
    second = acquire(tmp_path, "b", watch)
    assert second.held()
    with pytest.raises(LeaseLost, match=r"attempt 1 lost the lease, held now by b \(attempt 2\)"):
        first.verify()
    first.release()
    second.release()


def test_lease_beating_is_never_taken_over(tmp_path):
    clock = Clock()
    watch = LeaseWatch(clock)
    with acquire(tmp_path, ttl_s=50.0) as lease:
        for _ in range(20):
            assert acquire(tmp_path, "b", watch) is None
            clock.now += 49.0
            lease.beat()


def test_lease_late_first_look_starts_the_watch_then(tmp_path):
    clock = Clock()
    clock.now = 1e9
    with acquire(tmp_path, ttl_s=1.0):
        assert acquire(tmp_path, "b", LeaseWatch(clock)) is None


def test_lease_beat_after_loss_leaves_the_new_lease_untouched(tmp_path):
    clock = Clock()
    watch = LeaseWatch(clock)
    first = acquire(tmp_path, ttl_s=50.0)
    watch.may_be_taken(Folder(tmp_path), look(tmp_path))
    clock.now = 50.0
    second = acquire(tmp_path, "b", watch)
    before = (tmp_path / "2").read_bytes()
    first.beat()
    first.release()
    assert (tmp_path / "2").read_bytes() == before
    assert second.held()
    second.release()


def test_lease_background_thread_beats(tmp_path):
    with acquire(tmp_path, ttl_s=0.04) as lease:
        beat = look(tmp_path).beat
        deadline = threading.Event()
        while look(tmp_path).beat == beat:
            assert not deadline.wait(0.005)
        assert lease.held()


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "x"', b"[]\n", b"null\nx"])
def test_lease_torn_is_taken_over_after_the_takers_ttl(tmp_path, content):
    (tmp_path / "1").write_bytes(content)
    clock = Clock()
    watch = LeaseWatch(clock, ttl_s=10.0)
    assert acquire(tmp_path, "b", watch) is None
    clock.now = 10.0
    with acquire(tmp_path, "b", watch) as lease:
        assert lease.claim.number == 2


def test_lease_folder_removed_by_hand_is_lost(tmp_path):
    lease = acquire(tmp_path / "lease")
    (tmp_path / "lease" / "1").unlink()
    with pytest.raises(LeaseLost, match="held now by nobody"):
        lease.verify()
    with acquire(tmp_path / "lease", "b"):
        with pytest.raises(LeaseLost):
            lease.verify()
        lease.release()


def test_claim_sent_to_another_process_verifies_there(tmp_path):
    lease = acquire(tmp_path)
    claim = pickle.loads(pickle.dumps(lease.claim))
    assert claim.held()
    lease.release()
    assert not claim.held()


def listing(names):
    """Return what ``os.scandir`` gives of a folder with such names."""
    return nullcontext([SimpleNamespace(name=name, path=name, inode=lambda: 0) for name in names])


def test_claim_is_held_where_the_listing_does_not_show_it_yet(tmp_path, monkeypatch):
    acquire(tmp_path).release()
    lease = acquire(tmp_path)
    for listed in ([], ["1"]):
        with monkeypatch.context() as patch:
            patch.setattr(lease_module.os, "scandir", lambda folder, listed=listed: listing(listed))
            assert lease.held()
    (tmp_path / "2").unlink()
    assert not lease.held()
    lease.release()


def test_lease_listed_and_not_to_be_read_yet_is_not_free(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module.os, "scandir", lambda folder: listing(["1"]))
    assert acquire(tmp_path) is None
    assert look(tmp_path).number == 1


def test_lease_of_killed_process_here_is_free_at_once(tmp_path):
    code = f"{TAKE}Lease.acquire(Folder(Path({str(tmp_path)!r})), 'x'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not look(tmp_path).seems_live()
    with acquire(tmp_path, "b") as lease:
        assert lease.claim.number == 2


def test_lease_of_killed_process_nobody_waited_for_is_free_at_once(tmp_path):
    code = f"{TAKE}Lease.acquire(Folder(Path({str(tmp_path)!r})), 'x'); os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        assert not look(tmp_path).seems_live()
        acquire(tmp_path, "b").release()


def test_lease_of_killed_process_elsewhere_is_free_only_after_its_ttl(tmp_path):
    code = f"{TAKE}Lease.acquire(Folder(Path({str(tmp_path)!r})), 'x'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    path = tmp_path / "1"
    path.write_bytes(path.read_bytes().replace(b'"boot": "', b'"boot": "elsewhere-'))
    assert look(tmp_path).seems_live()
    clock = Clock()
    watch = LeaseWatch(clock)
    assert acquire(tmp_path, "b", watch) is None
    clock.now = 60.0
    with acquire(tmp_path, "b", watch) as lease:
        assert lease.held()


def test_lease_long_untouched_elsewhere_does_not_look_live_and_of_a_process_here_does(tmp_path):
    lease = acquire(tmp_path, ttl_s=60.0)
    os.utime(tmp_path / "1", (0, 0))
    assert look(tmp_path).seems_live()
    path = tmp_path / "1"
    path.write_bytes(path.read_bytes().replace(b'"boot": "', b'"boot": "elsewhere-'))
    os.utime(path, (0, 0))
    assert not look(tmp_path).seems_live()
    lease.release()


@pytest.mark.parametrize("alive", [True, False])
def test_lease_of_a_process_that_proc_hides_is_taken_over_at_once_only_when_it_is_no_more(tmp_path, monkeypatch, alive):
    """As where /proc is mounted with hidepid=2 and the owner is another user."""
    first_line = process_identity._first_line
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(lease_module.os, "getpid", lambda: child.pid)
        lease = acquire(tmp_path)
        monkeypatch.undo()
        if not alive:
            child.kill()
            child.wait()
        monkeypatch.setattr(
            process_identity, "_first_line", lambda path: None if path.endswith("/stat") else first_line(path)
        )
        assert look(tmp_path).owner_is_gone() is not alive
        assert (acquire(tmp_path, "b") is None) is alive
        child.kill()
    lease.release()


def test_look_at_a_folder_that_is_being_removed_sees_nobody(tmp_path, monkeypatch):
    acquire(tmp_path).release()
    listings = [["1", "2"], []]  # all of it went in between
    monkeypatch.setattr(lease_module.os, "scandir", lambda folder: listing(listings.pop(0)))
    assert look(tmp_path) is None


def test_registration_of_a_run_that_stands_still_stays_and_of_one_that_was_killed_goes(tmp_path):
    code = (
        "import os, sys, pathlib; from massive_sft.ledger.runs import *; from massive_sft.ledger.storage import *\n"
        "with register_run(Folder(pathlib.Path(sys.argv[1])), 'small', 'killed:1'): os._exit(9)"
    )
    sweeps, runs = Folder(tmp_path), tmp_path / "small" / "runs"
    with register_run(sweeps, "small", "stopped:1") as run:
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
        assert len(list(runs.iterdir())) == 2
        os.utime(run.place.local("1"), (0, 0))  # Ctrl-Z long ago, or a file server's clock
        with register_run(sweeps, "small", "next:1") as following:
            assert set(runs.iterdir()) == {run.place.local(), following.place.local()}
            assert {each.name for each in find_live_runs(sweeps.at("small"))} == {"stopped:1", "next:1"}


def test_run_that_cannot_see_the_others_leaves_no_registration(tmp_path):
    sweeps = Folder(tmp_path)
    (tmp_path / "other" / "runs" / "x" / "1").mkdir(parents=True)  # stands for a disk that refuses
    with pytest.raises(IsADirectoryError), register_run(sweeps, "small", "run:1"):
        pass
    assert not find_live_runs(sweeps.at("small"))


def elsewhere(run, age):
    """Make a registration look as if its run were on another machine and had last beaten ``age`` seconds ago."""
    path = run.place.local("1")
    path.write_bytes(path.read_bytes().replace(b'"boot": "', b'"boot": "elsewhere-'))
    os.utime(path, (time.time() - age, time.time() - age))


@pytest.mark.parametrize("clock", [0.0, 1e6, -1e6])
def test_registration_of_a_run_elsewhere_expires_by_the_clock_of_the_storage_alone(tmp_path, monkeypatch, clock):
    sweeps = Folder(tmp_path)
    with register_run(sweeps, "small", "silent:1") as silent, register_run(sweeps, "other", "beats:1") as beats:
        elsewhere(silent, 700.0)
        elsewhere(beats, 500.0)
        with monkeypatch.context() as patch:
            patch.setattr(lease_module.time, "time", lambda now=time.time: now() + clock)
            with register_run(sweeps, "third", "next:1") as run:
                assert [place.exists() for place in (silent.place.local(), beats.place.local())] == [False, True]
                assert run.place.local().exists()


def test_wants_that_are_unknown_are_taken_for_all(tmp_path):
    sweeps = Folder(tmp_path)
    assert not is_still_required(sweeps, "cell", ["a"])
    with register_run(sweeps, "small", "run:1") as run:
        assert is_still_required(sweeps, "cell", ["a"])  # not said yet
        publish_requirements(run, {"cell": ["a", "b"]})
        assert is_still_required(sweeps, "cell", ["a"])
        assert not is_still_required(sweeps, "cell", ["b", "c", "a"])
        assert not is_still_required(sweeps, "another", [])
        for torn in (b"", b"{", b"[]", b"{}", b'{"cells": {"cell": 1}}', b'{"cells": []}'):
            run.place.put("wants.json", torn)
            assert is_still_required(sweeps, "another", ["a"]), torn
        publish_requirements(run, {})
        assert not is_still_required(sweeps, "cell", [])
        elsewhere(run, 1e9)  # by this machine's clock it is long dead; by its own it may not be
        publish_requirements(run, {"cell": ["a"]})
        assert is_still_required(sweeps, "cell", [])
    assert not is_still_required(sweeps, "cell", [])


def race(folder: str, taker: int, folders: int, ready, wins):
    """Take every stale lease below ``folder``, against the other takers doing the same."""
    ready.wait()
    held = [acquire(Path(folder, str(index)), f"taker {taker}") for index in range(folders)]
    wins.put([index for index, lease in enumerate(held) if lease])
    ready.wait()  # nobody goes while others still take: a dead winner's lease would be free again


def test_lease_takers_racing_exactly_one_wins_each(tmp_path):
    folders, takers = 80, 4
    for index in range(folders):
        acquire(tmp_path / str(index)).release()
    context = multiprocessing.get_context("spawn")
    ready, wins = context.Barrier(takers), context.Queue()
    processes = [context.Process(target=race, args=(str(tmp_path), n, folders, ready, wins)) for n in range(takers)]
    for process in processes:
        process.start()
    won = [index for _ in processes for index in wins.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(won) == list(range(folders))


def test_lease_threads_racing_for_each_number_exactly_one_wins(tmp_path):
    rounds, takers = 200, 4
    barrier = threading.Barrier(takers)
    won: list[list[int]] = [[] for _ in range(takers)]

    def take(taker):
        for _ in range(rounds):
            barrier.wait()
            lease = acquire(tmp_path, str(taker))
            barrier.wait()
            if lease:
                won[taker].append(lease.claim.number)
                lease.release()

    threads = [threading.Thread(target=take, args=(taker,)) for taker in range(takers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for numbers in won for number in numbers) == list(range(1, rounds + 1))
