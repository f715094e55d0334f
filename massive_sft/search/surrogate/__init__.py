"""A Gaussian process over finite sets of candidates: what to try next, how sure the answer is, when to stop.

- ``asking.propose(space, target, outcomes, seed, allowed) -> Proposal``: the next candidate of those never tried.
- ``stopping.judge(space, target, outcomes, seed, regret, probability) -> Verdict``: whether to stop.
- ``simplex.candidates(limits, count, seed)``: mixtures that obey bounds, repeat limits and a cap on datasets.
- ``rungs.promotions(rungs, keep, outcomes)``: which parked trajectories go on.
- ``starting``: what was best for other models, and a learning rate where nothing is known.

All of it is a pure function of its arguments: the same numbers give the same answer to the last bit, on one thread.
"""
