"""Benchmarks whose answers another model judges: MT-Bench's ratings, AlpacaEval's win rates.

In: files of questions, a model's answers, the endpoints of judges. Out: scores, with every verdict they rest on.
Never: loads a model, keeps or prints a key, drops an answer that got no verdict.
"""
