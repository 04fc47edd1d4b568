"""Adam on minibatches, with averaged iterates."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(text="projected Adam on minibatches", config={"name": "gradient"})
