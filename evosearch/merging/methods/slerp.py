"""slerp: spherical interpolation between two models (Shoemake 1985)."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.combinations import dots
from evosearch.merging.kernels import at_least_float32, totals
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sums import weighted_sum
from evosearch.recipe.shapes import MergekitForm, Param

# Above this |cosine| slerp is replaced by linear interpolation, as in mergekit. Most fine-tunes of one base are this
# similar, so that slerp between them is a linear merge.
NEARLY_PARALLEL = 0.9995
ZERO_NORM = 1e-8  # vectors with a smaller norm have no direction and are not normalized


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dt = A′⟨dL/dθ, a⟩ + B′⟨dL/dθ, b⟩ for the merge Aa + Bb."""
    assert base is not None
    a, b = base, parents[0]
    by_a, by_b = _slopes(p["t"], p.choice("norm") == "match", *_geometry(a, b, p))
    # b − a is small for fine-tunes of one base: its own sum keeps the precision that ⟨dL/dθ, b⟩ would lose.
    along, across = totals(lambda _, c: (c[0] * c[1], c[0] * (c[2] - c[1])), (grad, a, b), at_least_float32(p.dtype))
    return {"t": (by_a + by_b) * along + by_b * across}


@merge_method(
    "slerp",
    paper="doi:10.1145/325165.325242",
    summary="Interpolates between two models and preserves their norm; helps when the two differ much.",
    needs_base=True,
    models=(1, 1),
    parameters={
        "t": Param(0.0, 1.0, strict=True),
        "norm": Param(default="keep", kind="choice", choices=("keep", "match")),
    },
    mergekit=MergekitForm("slerp", fixed={"norm": "keep"}),
    differentiable=("t",),
    derivative=derivative,
)
def slerp(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return sin((1−t)Ω)/sinΩ · a + sin(tΩ)/sinΩ · b, where Ω is the angle between a = θ₀ and b = θ₁ as flat vectors.

    `norm: match` rescales the result to the interpolated norm (1−t)‖a‖ + t‖b‖.

    Raises:
        CandidateError: An input tensor is not finite.
    """
    assert base is not None
    a, b, t = base, parents[0], p["t"]
    norm_a, norm_b, cosine = _geometry(a, b, p)
    from_a, from_b = _coefficients(t, max(-1.0, min(1.0, cosine)))
    if p.choice("norm") == "match":
        squared = from_a**2 * norm_a**2 + from_b**2 * norm_b**2 + 2 * from_a * from_b * cosine * norm_a * norm_b
        scale = ((1 - t) * norm_a + t * norm_b) / math.sqrt(squared) if squared > ZERO_NORM**2 else 1.0
        from_a, from_b = from_a * scale, from_b * scale
    return weighted_sum((a, b), (from_a, from_b), p)


def _geometry(a: Tensor, b: Tensor, p: Parameters) -> tuple[float, float, float]:
    """Return ‖a‖, ‖b‖ and the cosine of their angle, which rounding may put slightly outside of [−1, 1].

    Raises:
        CandidateError: An input tensor is not finite.
    """
    squared_a, product, squared_b = p.recall_of_all("products", True, lambda: dots(a, b))
    norm_a, norm_b = math.sqrt(squared_a), math.sqrt(squared_b)
    if not (math.isfinite(norm_a) and math.isfinite(norm_b)):
        raise CandidateError("materialize", "slerp: an input tensor is not finite")
    cosine = product / ((norm_a if norm_a > ZERO_NORM else 1.0) * (norm_b if norm_b > ZERO_NORM else 1.0))
    return norm_a, norm_b, cosine


def _coefficients(t: float, cosine: float) -> tuple[float, float]:
    """Return the coefficients of a and b: spherical, or linear if the two are nearly parallel or antiparallel."""
    if abs(cosine) > NEARLY_PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)  # Ω
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _slopes(t: float, match: bool, norm_a: float, norm_b: float, cosine: float) -> tuple[float, float]:
    """Return the derivatives of the coefficients of a and b in t."""
    bounded = max(-1.0, min(1.0, cosine))
    by_a, by_b = -1.0, 1.0
    if abs(bounded) <= NEARLY_PARALLEL:
        angle = math.acos(bounded)  # Ω
        by_a = -angle * math.cos((1 - t) * angle) / math.sin(angle)
        by_b = angle * math.cos(t * angle) / math.sin(angle)
    from_a, from_b = _coefficients(t, bounded)
    squared = from_a**2 * norm_a**2 + from_b**2 * norm_b**2 + 2 * from_a * from_b * cosine * norm_a * norm_b
    if not match or squared <= ZERO_NORM**2:
        return by_a, by_b
    length, norm = math.sqrt(squared), (1 - t) * norm_a + t * norm_b  # the factor is norm / length
    half = from_a * by_a * norm_a**2 + from_b * by_b * norm_b**2  # half of the derivative of `squared`
    half += (from_a * by_b + from_b * by_a) * cosine * norm_a * norm_b
    by_factor = (norm_b - norm_a) / length - norm * half / length**3
    factor = norm / length
    return by_a * factor + from_a * by_factor, by_b * factor + from_b * by_factor
