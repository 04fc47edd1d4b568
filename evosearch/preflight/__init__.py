"""Checks of a search before it starts, and estimates of its cost and duration."""
