"""Merge methods compared at their defaults and at the best of a small sweep, on unseen documents."""
