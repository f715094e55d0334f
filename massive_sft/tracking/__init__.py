"""The MLflow mirror of the ledger: whatever is here can be rebuilt from it.

In: records and loss curves of the ledger. Out: runs, metrics, artifacts in a tracking store; the spool of what waits.
Never: holds up a training, or knows something that the ledger does not.
"""

from massive_sft.tracking.connection_check import tracking_problem as tracking_problem
