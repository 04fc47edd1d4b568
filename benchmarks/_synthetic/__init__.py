"""Synthetic merge landscapes and optimizer comparisons, for `benchmarks.optimizers` and `benchmarks.spaces`."""
