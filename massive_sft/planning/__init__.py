"""What a sweep asks for, what the ledger already holds, and what is left to do.

In: a sweep and a ledger. Out: a plan: cells with their requirements, training runs, changes, selections, retention.
Never: trains, scores, writes anything but the last plan, or imports anything heavy.
"""
