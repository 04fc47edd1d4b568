"""Recipes: declarative descriptions of merged models, as plain data without torch."""
