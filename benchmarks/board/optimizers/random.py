"""Uniformly random candidates, without learning from any."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(text="uniformly random candidates", config={"name": "random"})
