"""Bridge to lm-eval: loaded tasks, frozen requests, and lm-eval's metrics of a model's answers."""
