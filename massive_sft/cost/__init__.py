"""What a plan costs: memory, hours, GPU-hours, money and bytes, each with what it rests on.

In: a plan, shapes of models, what was measured here. Out: estimates, fits with remedies, what a budget pays for.
Never: touches a device, or imports anything heavy.
"""
