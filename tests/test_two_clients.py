"""Two machines on one root, for real: processes on two mounts of one folder, each with a cache of its own.

The mounts are NFS over the loopback where root may make them; ``MASSIVE_SFT_MOUNTS=A:B`` names two others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from nfs_mounts import mounts
from test_ledger import record_files, revision_of

from massive_sft.ledger.store import Ledger

__all__ = ["mounts"]  # a fixture
CELLS, RECORDS = 4, 25  # each client tries for so many records of each cell
CLIENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_ledger import cell_id, make_record
from massive_sft.ledger.store import Ledger
root, who = Path(sys.argv[2]), sys.argv[3]
ledger = Ledger.open(root)
left = {cell_id(number): int(sys.argv[5]) for number in range(int(sys.argv[4]))}
deadline = time.monotonic() + 120
while any(left.values()) and time.monotonic() < deadline:
    for cell in [cell for cell, count in left.items() if count]:
        lease = ledger.lease_cell(cell, who)
        if lease is None:
            continue
        with lease:
            before = ledger.read_record(cell)
            path = ledger.write_record(make_record(cell, attempt=lease.claim.number, training={"who": who}), lease.claim)
            left[cell] -= 1
            print(cell, path.name, flush=True)
print("left", sum(left.values()))
"""


@pytest.mark.timeout(300)
def test_two_clients_of_one_folder_lose_no_record_and_share_no_lease(mounts: list[Path]) -> None:
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, Path(__file__).parent, root, f"client {number}", str(CELLS), str(RECORDS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, root in enumerate(mounts)
    ]
    told = [client.communicate()[0].splitlines() for client in clients]
    assert [client.returncode for client in clients] == [0, 0]
    assert [lines.pop() for lines in told] == ["left 0", "left 0"]
    every = [line for lines in told for line in lines]
    assert len(every) == len(set(every)) == 2 * CELLS * RECORDS
    ledger = Ledger.open(mounts[0], create=False)
    for record in ledger.records():
        written = {line.split()[1] for line in every if line.startswith(record.cell)}
        assert {path.name for path in record_files(ledger.root, record.cell)} == written
        leases = sorted(revision_of(name).lease for name in written)
        assert leases == sorted(set(leases)), "two records under one lease: it had two owners"
        assert record.attempt == leases[-1]
    assert len(list(ledger.records())) == CELLS
