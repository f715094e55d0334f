"""Supervised fine-tuning: data, training loop, checkpoints. Runs without Ray."""
