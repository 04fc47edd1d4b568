"""What the benchmarks of a night on a cluster share: workers that weigh nothing."""
