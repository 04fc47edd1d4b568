"""evosearch: evolutionary search for merge recipes of language models."""

__version__ = "0.1.0"
