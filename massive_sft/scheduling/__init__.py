"""A sweep on a Ray cluster: Tune drives one trial a trajectory, lanes train, scorers score.

Nothing that holds a CPU or a GPU ever waits for a resource or for another holder: trials and queues hold none, lanes
and scorers hold all.
"""
