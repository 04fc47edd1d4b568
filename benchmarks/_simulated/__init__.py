"""Search problem without models, and workers on a simulated clock, for `benchmarks.schedule` and the tests."""
