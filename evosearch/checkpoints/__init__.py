"""Models on disk: families, reading and writing, adapters, tokenizers, references and caches."""
