"""Inference engine: log-likelihoods and greedy generation with shared prefixes. Independent of suites and lm-eval."""
