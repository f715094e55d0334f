"""Programs that a model wrote, run behind walls.

In: a program's text. Out: whether it ran to its end, and why not.
Never: files, environment, network or processes of the machine in that program's hands, or a verdict that it can print.
"""
