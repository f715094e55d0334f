"""Searches: which cell to train next, which training goes on, when to stop, and why.

``observations`` holds what goes in and out; ``surrogate`` proposes from finite sets by a Gaussian process of its own.

In: a space of candidates, a target, the outcomes of what was tried. Out: decisions, each a file of a chain.
Never: lets a decision depend on time, machines or the order in which outcomes came, trains or scores anything.
"""
