"""Vocabularies, tokenizer files and chat templates."""
