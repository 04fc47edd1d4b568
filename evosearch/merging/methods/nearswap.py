"""nearswap: take over the other model's entries where they are near the base's (Alchemonaut, QuartetAnemoi)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.kernels import at_least_float32, elementwise, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dt = ⟨dL/dθ, sign(τ)⟩ over the entries with |τ| > t, which are held fixed; 0 for t < 0."""
    assert base is not None
    t = p["t"]

    def terms(_: int, chunks: list[Tensor]) -> Tensor:
        slope, theta_0, theta = chunks
        tau = theta - theta_0
        return slope * (tau.sign() * (tau.abs() > t) * float(t >= 0))

    return {"t": total(terms, (grad, base, parents[0]), at_least_float32(p.dtype))}


@merge_method(
    "nearswap",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    summary="Keeps the base and takes over only small differences of another model, up to t.",
    needs_base=True,
    models=(1, 1),
    parameters={"t": Param(0.0, 0.01)},
    mergekit=MergekitForm("nearswap"),
    differentiable=("t",),
    derivative=derivative,
)
def nearswap(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return (1−w)θ₀ + wθ₁ with w = min(1, t / |τ|), which is θ₀ + τ limited to [−t, t], with τ = θ₁ − θ₀.

    A t below zero leaves the base.
    """
    assert base is not None
    t = max(0.0, p["t"])

    def swap(_: int, ends: list[Tensor]) -> Tensor:
        tau = ends[1] - ends[0]
        return tau.clamp(-t, t).add_(tau - tau).add_(ends[0])  # τ − τ is NaN where τ is infinite

    return elementwise(swap, (base, parents[0]), p.dtype, sink=p.sink)
