"""As `per_tensor`, with the same numbers searched over random task vectors, and with training on the same documents."""

from benchmarks.board.entries import Method
from benchmarks.board.methods.per_tensor import weight

METHOD = Method(
    text="a number per tensor and expert, beside its placebo and training",
    weight=weight,
    baselines={"trained": True, "placebo": True},
)
