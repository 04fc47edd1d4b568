"""Executors: workers that score candidates, in this process or on a Ray cluster."""
