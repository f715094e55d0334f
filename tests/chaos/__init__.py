"""Kills and stops the processes of a real sweep at named moments, then asks whether anything was lost.

``PYTHONPATH=tests python -m chaos --seed 7`` from the repository's root, or ``make chaos-short SEED=7``. It needs Linux.
"""
