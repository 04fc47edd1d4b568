"""Few numbers, told the log-probability of right answers, the earlier default."""

from benchmarks.board.entries import Method
from benchmarks.board.methods.few_numbers import weight

METHOD = Method(
    text="a number per group of layers and expert, told the log-probability of right answers",
    weight=weight,
    suite={"fitness": "gold_logprob"},
)
