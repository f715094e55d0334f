"""A Gaussian process over finite sets of candidates: what to try next, how sure the answers are, when to stop.

``asking.propose`` gives the next candidates, ``stopping.judge`` says whether more of them are worth it.

In: a space of candidates, a target, outcomes of what was tried, a seed. Out: proposals, verdicts.
Never: depends on the order of outcomes or the number of threads: equal input gives equal output to the last bit.
"""
