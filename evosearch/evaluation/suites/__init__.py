"""Suites: their schema, lm-eval's tasks by name, and the documents that each split takes."""
