"""Tensors in, tensors out: the merge methods."""
