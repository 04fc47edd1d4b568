"""Recipe and checkpoints in, weights out."""
