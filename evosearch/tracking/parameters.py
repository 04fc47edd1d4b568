"""Parameters of a candidate's run: its genome, by the labels of models instead of their indexes."""

from collections.abc import Mapping
from typing import Any

from evosearch.recipe.shapes import Scalar
from evosearch.search.space.folding import fold
from evosearch.search.titles import dimension_title
from evosearch.tracking.metrics import safe_name

MAX_PARAMS = 100  # entries of a folded genome shown as parameters; all numbers are in the recipe
DIGITS = 4  # significant digits of a number; the recipe has all


def parameters(genome: Mapping[str, Scalar], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a genome, of holes with many numbers in summary.

    MLflow accepts no brackets in names: `sort.weight[layers 0-1]` is shown as `sort.weight layers 0-1`.

    >>> parameters({"models[0].weight[layer 3]": 0.123456}, {"models": [{"model": "zoo:tiny/sort"}]})
    {'sort.weight layer 3': '0.1235'}

    Args:
        genome: Dimension → value.
        recipe: The genome's recipe as plain data.
    """
    found: dict[str, str] = {}
    for name, value in list(fold(genome, recipe).items())[:MAX_PARAMS]:
        shown = safe_name(dimension_title(name, recipe).replace("[", " ").replace("]", ""))
        if shown in found:  # MLflow refuses a second value
            shown = safe_name(name)
        found[shown] = f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
    return found
