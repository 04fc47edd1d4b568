"""Parts of `scripts/bench/optimizers` and `scripts/bench/spaces`."""
