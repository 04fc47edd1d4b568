"""Caches of a node: file hashes, model copies and applied adapters, with their locks."""
