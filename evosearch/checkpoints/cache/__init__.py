"""Caches on a node: locks, hashes of files, copies of models, applied adapters."""
