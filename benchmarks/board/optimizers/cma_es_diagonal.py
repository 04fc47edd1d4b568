"""CMA-ES with a step size for each number, for many numbers."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(
    text="CMA-ES with a diagonal covariance matrix",
    config={"name": "cma_es", "diagonal": True, "population": 12, "sigma": 0.1},
)
