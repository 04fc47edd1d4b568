"""Inference engine: log-likelihoods and greedy generation with shared prefixes. Knows no suites and no lm-eval."""
