"""One number for each tensor and expert, told the log-probability of right answers, the earlier default."""

from benchmarks.board.entries import Method
from benchmarks.board.methods.per_tensor import weight

METHOD = Method(
    text="a number per tensor and expert, told the log-probability of right answers",
    weight=weight,
    suite={"fitness": "gold_logprob"},
)
