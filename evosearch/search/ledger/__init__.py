"""The ledger: the durable record of searches, in SQLite or PostgreSQL."""
