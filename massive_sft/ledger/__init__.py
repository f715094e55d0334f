"""Every outcome on disk: records, attempts, leases. Nothing is overwritten. Imports nothing heavy."""
