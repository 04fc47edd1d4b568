"""The search space: recipes with holes, their dimensions, and the recipes of genomes."""
