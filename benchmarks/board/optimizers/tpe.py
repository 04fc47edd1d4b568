"""Tree-structured Parzen estimator."""

from benchmarks.board.entries import Optimizer

OPTIMIZER = Optimizer(text="tree-structured Parzen estimator (Optuna)", config={"name": "tpe"})
