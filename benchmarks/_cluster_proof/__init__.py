"""A search on a cluster that loses a node, checked in the ledger and over MLflow's REST API."""
