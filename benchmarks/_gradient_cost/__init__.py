"""Timed jobs of real workers, and their memory, for `benchmarks.gradient_cost`."""
