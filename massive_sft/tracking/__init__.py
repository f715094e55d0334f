"""The tracker: MLflow as a mirror of the ledger. The ledger is the truth; whatever is here can be rebuilt from it.

Only ``tracker`` imports mlflow, so that checking an address stays light.
"""

from massive_sft.tracking.address import tracking_problem as tracking_problem
