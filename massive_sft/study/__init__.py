"""Records, or the released table of the paper, as tidy frames, and pure functions on them.

In: records of a ledger, a table as CSV. Out: pandas frames, gains, intervals, correlations, findings.
Never: reads a model, draws anything, or fills in what is missing.
"""
