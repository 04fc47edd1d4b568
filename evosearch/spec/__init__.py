"""The search spec: its models, how it is read, and the run directory it leads to."""
