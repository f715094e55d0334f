"""From a sweep file to cells with ids, and from cells to trajectories.

In: YAML, and the files it names as hashes. Out: the checked schema, cells, trajectories, layouts, semantics numbers.
Never: opens the ledger, reads a model's weights, or imports anything heavy.
"""
