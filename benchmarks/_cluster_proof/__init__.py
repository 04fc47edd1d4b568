"""End-to-end test of a cluster that loses a node, checked in the ledger and through MLflow's REST API."""
