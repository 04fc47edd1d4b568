"""Transfer of a recipe's parameter values into another search space."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from evosearch.materialize.plan import TensorOp
from evosearch.recipe.dual import Dual
from evosearch.recipe.shapes import Scalar
from evosearch.search.space.dimensions import Dimension, Genome

Place = tuple[str, str, str]  # tensor, parameter, model; "" for a parameter that all models share


def transferred(dimensions: Sequence[Dimension], ours: Sequence[TensorOp], theirs: Sequence[TensorOp]) -> Genome:
    """Return the numbers with which the values in our recipe come closest to those in another one.

        xₖ = Σ_p |∂v_p/∂xₖ| v'_p / Σ_p |∂v_p/∂xₖ|

    over the places p (parameter, model, tensor) that dimension k affects, where v is our value and v' theirs. Numbers
    by layer thus become numbers by tensor unchanged, and numbers by tensor are averaged over a layer. The two merges
    may still differ: by what our recipe fixes at other values (see `fixed_otherwise`), and by parts that only one has.

    Args:
        dimensions: Our dimensions.
        ours: Operations of our recipe, with a `Dual` where a dimension has an effect.
        theirs: Operations of the other recipe.

    Returns:
        Dimension → value, for the dimensions that affect a place where the other recipe has a number; clipped to
        their bounds.
    """
    known = {place: float(value) for place, value in _values(theirs) if not isinstance(value, str)}
    sums: defaultdict[int, float] = defaultdict(float)
    shares: defaultdict[int, float] = defaultdict(float)
    for place, value in _values(ours):
        if isinstance(value, Dual) and place in known:
            for index, slope in value.terms.items():
                sums[index] += abs(slope) * known[place]
                shares[index] += abs(slope)
    return {dimensions[k].name: dimensions[k].clip(sums[k] / shares[k]) for k in sorted(shares)}


def fixed_otherwise(ours: Sequence[TensorOp], theirs: Sequence[TensorOp]) -> tuple[str, ...]:
    """Return the parameters that have no derivative in our recipe and another value in the other one.

    Args:
        ours: Operations of our recipe, with a `Dual` where a dimension has an effect.
        theirs: Operations of the other recipe.
    """
    known = dict(_values(theirs))
    fixed = ((place, value) for place, value in _values(ours) if not isinstance(value, Dual))
    return tuple(sorted({place[1] for place, value in fixed if known.get(place, value) != value}))


def _values(ops: Sequence[TensorOp]) -> Iterator[tuple[Place, Scalar]]:
    """Yield every parameter value of a plan with its place."""
    for op in ops:
        for name, value in op.parameters.shared.items():
            yield (op.tensor, name, ""), value
        for name, values in op.parameters.own.items():
            for parent, value in zip(op.parents, values, strict=True):
                yield (op.tensor, name, parent.reference), value
