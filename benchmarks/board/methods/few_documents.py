"""One number for each tensor and expert, searched on 15 documents a task and validated on 15."""

from benchmarks.board.entries import Method
from benchmarks.board.methods.per_tensor import weight

METHOD = Method(
    text="a number per tensor and expert, 15 documents a task to search and 15 to choose the winner",
    weight=weight,
    suite={"documents": {"search": 15, "validation": 15}},
)
