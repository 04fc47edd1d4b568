"""Materialization of recipes: from checkpoints to merged weights, in memory and on disk."""
