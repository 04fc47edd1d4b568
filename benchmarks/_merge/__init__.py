"""Merges under measurement, and what they are compared with."""
