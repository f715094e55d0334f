"""Every outcome on disk: records, attempts, leases, provenance. Files are the truth.

In: what a stage found out, and who says so. Out: sealed records, leases, an index, statuses.
Never: overwrites a record, decides what to do next, or imports anything heavy.
"""
