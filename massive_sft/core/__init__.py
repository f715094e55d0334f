"""What every package knows: errors, atomic files, fingerprints, imports, memory, the stop signal.

In: paths, values, signals. Out: errors with a place and a rule, whole files or none, ids, whether to stop.
Never: imports another package of this one, or knows what a sweep is.
"""
