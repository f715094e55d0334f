"""Benchmarks in three steps with files between: requests, responses, scores.

In: lm-eval's tasks or task files, a model. Out: request sets, responses by shard, scores with per-sample values.
Never: trains, writes records, or lets one benchmark's failure reach another.
"""
