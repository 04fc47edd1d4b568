"""Fault injection for `benchmarks.faults`: real processes are killed, then the ledger is checked."""
