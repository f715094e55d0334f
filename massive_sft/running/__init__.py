"""A run: the check before it, the stages of a cell, one trajectory's attempt, other runs, the end.

In: a plan. Out: records in the ledger, events for whoever listens, snapshots, the report.
Never: knows how work is spread over a cluster: that is handed in.
"""
