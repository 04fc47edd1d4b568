"""Checks of `benchmarks.gpu_check`, which compare merges, scores and workers on a GPU with the CPU."""
