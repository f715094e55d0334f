"""Evaluation in three steps with files between: requests, responses, scores. Also perplexity."""
