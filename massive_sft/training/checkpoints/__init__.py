"""Checkpoints: all that a training needs to go on as if nothing had happened.

``disk`` writes and reads them, ``policy`` decides when one is due and whether a training may go on from it,
``continuity`` compares the losses afterwards, ``manager`` drives.
Never: trusts a checkpoint that does not match its manifest, its data or its environment.
"""
