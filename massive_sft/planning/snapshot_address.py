"""Where a sweep's snapshots are uploaded to (``storage.snapshots``)."""

from __future__ import annotations

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.provenance import redact
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.paths import expand_variables


def snapshot_address(sweep: Sweep) -> str | None:
    """Return the address that a sweep's snapshots are uploaded to; None where they stay under the storage root.

    Raises InvalidInput when a ``${NAME}`` in it is not set, or it is none.
    """
    text, place = sweep.file.storage.snapshots, f"{sweep.path}: storage.snapshots"
    if text is None:
        return None
    try:
        return str(Bucket.of(expand_variables(text)))
    except KeyError as error:
        rule = f"needs the environment variable {error.args[0]}, which is not set"
        raise InvalidInput(Problem(place, rule, redact(text))) from None
    except ValueError as error:
        rule = "must be s3://BUCKET or s3://BUCKET/PREFIX; endpoint and keys come from the environment (AWS_*)"
        raise InvalidInput(Problem(place, rule, redact(text))) from error
