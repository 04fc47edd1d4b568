"""Searches of other tools as search specs: mergekit-evolve, mergenetic, auto-merge-llm."""
