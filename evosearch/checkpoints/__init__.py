"""Models on disk: reading, writing, families, references, preflight."""
