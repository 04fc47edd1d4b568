"""Statistics of per-item scores: score cards, intervals, tests and minibatches."""
