"""What `scripts/bench/faults` is made of: real processes that are ended, and what the ledger then says."""
