"""The stages of a cell: train, score, measure, record. Each reads files and writes files, so each can rerun alone."""
