"""The product's own choice."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(text="the product's own choice", config={"name": "auto"})
