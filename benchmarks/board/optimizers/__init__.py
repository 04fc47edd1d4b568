"""Optimizers: each file has `OPTIMIZER`."""
