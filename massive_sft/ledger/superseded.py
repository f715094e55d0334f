"""What a root in an object store has on this machine of attempts that lost their trajectory for good.

Whoever goes on elsewhere removes what is in the bucket, and cannot reach what the lost machine wrote beside it: states
of 14 to 16 bytes a trained weight, and snapshots.
"""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path

from massive_sft.ledger.attempt import KEPT, RESUME, counting_checkpoint
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.ledger.lease import read_lease
from massive_sft.ledger.storage import Root

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"(\d+)-\d+-\w+")  # begins with the number of the attempt that wrote it


def remove_superseded(root: Root) -> list[Path]:
    """Remove it; return the folders. Logs stay, and loss curves, which whoever goes on here compares with.

    Needs no lease: whoever holds one now, or takes one meanwhile, writes under a higher number, and reads of lower ones
    the checkpoint that counts in the bucket alone, which stays. What cannot be looked at now is left to the next call.
    """
    removed: list[Path] = []
    if isinstance(root, BucketRoot):  # a folder has no copies
        for home in sorted(root.local("trajectories").glob("*")):
            try:
                removed += _remove_of(root.at(f"trajectories/{home.name}"))
            except OSError as error:
                log.warning("%s: what lost attempts left here stays: %s", home, error)
    return removed


def _remove_of(trajectory: BucketRoot) -> list[Path]:
    written = _written(trajectory.local())
    lease = read_lease(trajectory.at("lease")) if written else None
    if lease is None:
        return []
    last = lease.number if lease.released else lease.number - 1
    counting = {trajectory.local(folder) / counting_checkpoint(trajectory, folder) for folder in (RESUME, KEPT)}
    removed = [path for path, attempt in written.items() if attempt <= last and path not in counting]
    for path in removed:
        with suppress(FileNotFoundError):  # another process of this machine is at it
            shutil.rmtree(path)
    return removed


def _written(home: Path) -> dict[Path, int]:
    """Return the folders below a trajectory's that attempts wrote here, with the numbers of those."""
    own = {path: int(path.parent.name) for path in home.glob("attempts/*/*") if path.parent.name.isdecimal()}
    named = [(path, _CHECKPOINT.fullmatch(path.name)) for folder in (RESUME, KEPT) for path in home.glob(f"{folder}/*")]
    own |= {path: int(match[1]) for path, match in named if match}
    return {path: attempt for path, attempt in own.items() if path.is_dir()}
