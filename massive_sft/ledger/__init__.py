"""Every outcome on disk: records, attempts, leases, provenance. Files are the truth.

In: outcomes of cells and trajectories, under leases. Out: sealed records, an index, statuses, who runs what.
Never: overwrites a record, decides what to do next, or imports anything heavy.
"""
