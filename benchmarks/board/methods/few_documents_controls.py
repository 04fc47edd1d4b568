"""As `few_documents`, beside its placebo and training on the same documents."""

from benchmarks.board.entries import Method
from benchmarks.board.methods.few_documents import METHOD as FEW
from benchmarks.board.methods.per_tensor import weight

METHOD = Method(
    text="a number per tensor and expert, 15 documents a task, beside its placebo and training",
    weight=weight,
    suite=FEW.suite,
    baselines={"trained": True, "placebo": True},
)
