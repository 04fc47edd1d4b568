"""Specs, and the wiring of the rooms."""
