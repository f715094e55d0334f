"""Checkpoints: all that a training needs to go on as if nothing had happened.

``disk`` writes and reads them, ``policy`` decides whether one may go on and when the next is due, ``manager`` drives.
Never: trusts a checkpoint that does not match its manifest, its data or its environment.
"""
