"""One number for each tensor and expert, told how close the answers are to those of each task's best expert.

The search split has no labels; finalists are chosen on `validation`, with labels.
"""

from benchmarks.board.entries import Method
from benchmarks.board.methods.per_tensor import weight

METHOD = Method(
    text="a number per tensor and expert, told the experts' own answers instead of labels",
    weight=weight,
    suite={"fitness": {"teachers": "auto"}},
)
