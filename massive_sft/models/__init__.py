"""Base models, adapters and tokenizers: found, pinned, loaded, or refused with the reason.

In: what the sweep file says of a model. Out: hub commits and files, modules, tokenizers, attention, memory in use.
Never: reads training data or benchmarks.
"""
