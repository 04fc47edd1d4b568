"""Gradient in the dimensions of a search space, from the derivatives of a merge at its tensors.

    dL/dx_k = Σ_tensors Σ_p dL/dp · dp/dx_k         p the parameters of the merge at a tensor

dL/dp is the contraction of the tensor's gradient with the method's derivative; dp/dx_k are the terms of `Dual` numbers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.plan import TensorOp
from evosearch.merging.registry import Slope, specs
from evosearch.recipe.dual import Dual


class Slopes:
    """Sums of derivatives, by tensor and dimension. The result does not depend on the order of tensors.

    Args:
        ops: The merge, at `Dual` numbers.
        dimensions: Number of dimensions of the search space.

    Raises:
        RecipeError: The merge has no derivative in a parameter that depends on a dimension.
    """

    def __init__(self, ops: Sequence[TensorOp], dimensions: int) -> None:
        self._dimensions = dimensions
        self.ops = tuple(op for op in ops if any(value.terms for _, value in _duals(op)))
        for op in self.ops:
            _check(op, dimensions)
        self._sums: dict[str, dict[int, list[float]]] = {op.tensor: {} for op in self.ops}

    def add(self, op: TensorOp, slopes: Mapping[str, Slope]) -> None:
        """Add the derivatives in the parameters at one tensor, see `Derivative`."""
        sums = self._sums[op.tensor]
        for name, slope in slopes.items():
            several = isinstance(slope, tuple)
            values = op.parameters.own[name] if several else (op.parameters.shared[name],)
            for value, own in zip(values, slope if isinstance(slope, tuple) else (slope,), strict=True):
                for index, term in value.terms.items() if isinstance(value, Dual) else ():
                    sums.setdefault(index, []).append(own * term)

    def total(self) -> tuple[float, ...]:
        """Return the gradient (dimensions,).

        Raises:
            CandidateError: It is not finite.
        """
        found: list[list[float]] = [[] for _ in range(self._dimensions)]
        for sums in self._sums.values():
            for index, terms in sums.items():
                found[index] += terms
        if not all(math.isfinite(term) for terms in found for term in terms):
            raise CandidateError("score", "the gradient is not finite: the weights overflow")
        return tuple(math.fsum(terms) for terms in found)


def _duals(op: TensorOp) -> Iterator[tuple[str, Dual]]:
    """Yield the parameters at a tensor that depend on dimensions."""
    for name, value in op.parameters.shared.items():
        if isinstance(value, Dual):
            yield name, value
    for name, values in op.parameters.own.items():
        for value in values:
            if isinstance(value, Dual):
                yield name, value


def _check(op: TensorOp, dimensions: int) -> None:
    known = specs()[op.method].differentiable
    for name, value in _duals(op):
        if name not in known:
            allowed = f"{op.method} has derivatives in: {', '.join(known) or 'no parameter'}"
            next_step = "Search it with an optimizer that needs no gradients"
            raise RecipeError("recipe.merge_method", f"no derivative in '{name}'", allowed, next_step)
        assert all(0 <= index < dimensions for index in value.terms), "a dimension that the job does not have"
