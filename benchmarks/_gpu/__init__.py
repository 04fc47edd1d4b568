"""Checks of `benchmarks.gpu_check`: merges, scores and workers on a GPU against the CPU."""
