"""CMA-ES with a full covariance matrix."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(text="CMA-ES", config={"name": "cma_es", "population": 12, "sigma": 0.2})
