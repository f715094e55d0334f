"""Supervised fine-tuning of one trajectory: engine, loop, checkpoints, snapshots. Runs without Ray.

In: a ``TrainingSpec`` and ``Samples``. Out: events as it goes, snapshots of weights, a ``TrainingSummary``.
Never: writes records, scores anything, or depends on how many processes share the work.
"""
