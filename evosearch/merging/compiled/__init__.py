"""Fused CPU kernels of the merge methods, compiled on first use."""
