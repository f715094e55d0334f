"""The tracker: MLflow as a mirror of the ledger. The ledger is the truth; whatever is here can be rebuilt from it.

Whoever asks for a problem or an address does not import mlflow before a store or a server has to be asked.
"""

from massive_sft.tracking.probe import tracking_problem as tracking_problem
