"""Synthetic merge landscapes and comparisons of optimizers, for `benchmarks.optimizers` and `benchmarks.spaces`."""
