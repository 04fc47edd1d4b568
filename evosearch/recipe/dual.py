"""Dual numbers: parameter values of a recipe that know their derivative in the searched dimensions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class Dual(float):
    """A number with its derivative: value + Σ terms[k] dxₖ, where xₖ is dimension k of a search space.

    It is a float in every other respect: it compares, prints, hashes and merges like one. Sums with numbers and other
    duals, and products and quotients with numbers, keep the derivative, so that gradients over depth are interpolated
    with it. All other arithmetic returns a plain float.

    >>> x, y = Dual(1.0, {0: 1.0}), Dual(3.0, {1: 1.0})
    >>> middle = 0.5 * x + 0.5 * y
    >>> float(middle), dict(middle.terms)
    (2.0, {0: 0.5, 1: 0.5})

    Args:
        value: The value.
        terms: Index of a dimension → derivative of the value in it; zeros are dropped.
    """

    __slots__ = ("terms",)
    terms: Mapping[int, float]
    """Index of a dimension → derivative of the value in it."""

    def __new__(cls, value: float, terms: Mapping[int, float]) -> "Dual":
        """Create a dual number."""
        made = super().__new__(cls, value)
        made.terms = MappingProxyType({key: float(slope) for key, slope in terms.items() if slope})
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Dual, (float(self), dict(self.terms))

    def __pos__(self) -> "Dual":
        return self

    def __neg__(self) -> "Dual":
        return Dual(-float(self), {key: -slope for key, slope in self.terms.items()})

    def __add__(self, other: float, /) -> float:
        return _combined(float.__add__(self, other), self, other, 1.0)

    def __radd__(self, other: float, /) -> float:
        return _combined(float.__radd__(self, other), self, other, 1.0)

    def __sub__(self, other: float, /) -> float:
        return _combined(float.__sub__(self, other), self, other, -1.0)

    def __rsub__(self, other: float, /) -> float:
        return _combined(float.__rsub__(self, other), -self, other, 1.0)

    def __mul__(self, other: float, /) -> float:
        return self._scaled(float.__mul__(self, other), other)

    def __rmul__(self, other: float, /) -> float:
        return self._scaled(float.__rmul__(self, other), other)

    def __truediv__(self, other: float, /) -> float:
        value = float.__truediv__(self, other)
        if value is NotImplemented or isinstance(other, Dual):
            return value
        return Dual(value, {key: slope / other for key, slope in self.terms.items()})

    def _scaled(self, value: float, factor: float) -> float:
        """Return `value`, which is this number times `factor`, with its derivative; plain if the factor is a dual."""
        if value is NotImplemented or isinstance(factor, Dual):
            return value
        return Dual(value, {key: slope * factor for key, slope in self.terms.items()})


def _combined(value: float, x: Dual, y: float, sign: float) -> float:
    """Return `value`, which is x + sign · y, with its derivative."""
    terms = dict(x.terms)
    for key, slope in y.terms.items() if isinstance(y, Dual) else ():
        terms[key] = terms.get(key, 0.0) + sign * slope
    return value if value is NotImplemented else Dual(value, terms)
