"""Executors, whose workers score candidates in this process or on a Ray cluster."""
