"""The verbs about results: what a sweep left in its ledger is explained, compared, exported, published, cleaned up."""
