"""The mirror of the ledger in MLflow."""
