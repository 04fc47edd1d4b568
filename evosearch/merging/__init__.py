"""Merge methods: pure functions of tensors, and their registry."""
