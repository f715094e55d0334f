"""What is measured of a run beside its scores: perplexity and token length of its data, layer change of its weights.

In: samples and a model, or a snapshot and its base. Out: numbers with their counts, tables of layers.
Never: decides which runs are measured, or writes records.
"""
