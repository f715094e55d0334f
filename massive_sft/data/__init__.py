"""From datasets to token arrays: file readers, rows, templates, encoding, sampling, cache, preview.

In: files or hub ids, templates, a tokenizer. Out: ``Samples`` with their loss mask, and counts of all that happened.
Never: loads a model's weights, drops or repairs a row in silence.
"""
