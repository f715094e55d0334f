"""A sweep on a Ray cluster: Tune drives one trial a trajectory, lanes train, scorers score. Also its jobs.

In: a plan and a cluster. Out: the same records and events as a run in one process.
Never: decides what a cell needs, or holds a result that is not in the ledger.
"""
