"""Development cluster on one machine: PostgreSQL, an MLflow server with accounts, and Ray nodes, on loopback."""
