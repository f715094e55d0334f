"""The library: what ``import massive_sft`` offers to scripts and notebooks, and what the command line calls too.

In: a sweep file or a storage root. Out: a plan, a run of it, results as frames.
Never: prints, reads arguments of a command, or imports anything heavy before it is needed.
"""
