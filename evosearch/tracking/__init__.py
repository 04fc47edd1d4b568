"""Tracking: a mirror of the ledger in MLflow, or in a file of JSON lines."""
