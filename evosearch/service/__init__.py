"""The commands run, score and merge: the other packages wired together."""
