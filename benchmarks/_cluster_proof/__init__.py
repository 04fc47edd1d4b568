"""What `cluster` is made of: PostgreSQL, an MLflow server and Ray nodes on loopback, as separate processes."""
