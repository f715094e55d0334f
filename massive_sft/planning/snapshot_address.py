"""Where a sweep's snapshots are uploaded to (``storage.snapshots``), and other addresses of buckets in a sweep file."""

from __future__ import annotations

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.paths import expand_variables

IN_ROOT = "weights"  # below a root that is an object store itself


def snapshot_address(sweep: Sweep) -> str | None:
    """Return the address that a sweep's snapshots are uploaded to; None where they stay in a folder, the root.

    Raises InvalidInput when a ``${NAME}`` in it is not set, or it is none.
    """
    storage = sweep.file.storage
    if storage.snapshots is not None:
        return bucket_address(storage.snapshots, sweep.place("storage.snapshots"))
    if storage.root.startswith("s3://"):
        return str(Bucket.of(bucket_address(storage.root, sweep.place("storage.root"))).at(IN_ROOT))
    return None


def bucket_address(text: str, place: str) -> str:
    """Return the address of a bucket that ``text`` means; ``place`` is where it says so. Raises InvalidInput."""
    try:
        return str(Bucket.of(expand_variables(text)))
    except KeyError as error:
        rule = f"needs the environment variable {error.args[0]}, which is not set"
        raise InvalidInput(Problem(place, rule, redact(text))) from None
    except ValueError as error:
        rule = "must be s3://BUCKET or s3://BUCKET/PREFIX; endpoint and keys come from the environment (AWS_*)"
        raise InvalidInput(Problem(place, rule, redact(text))) from error
