"""The lead that picking the best of many models by few items gives by itself.

Of N equally good models the best one on n items looks better than it is. How much follows from the recorded items:
with every model's own mean removed, all are equally good, and only their luck on single items is left, with its
correlation (models that err alike gain little by being many). The items are drawn with replacement, and the best mean
of each draw is averaged (White 2000, "A reality check for data snooping", Econometrica 68: the maximum under the null).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.evaluation.statistics.units import Groups, scales, units
from evosearch.evaluation.types import Column

DRAWS = 1000


def selection_luck(
    models: Sequence[Mapping[str, Column]],
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Groups | None = None,
    seed: int = 0,
) -> float:
    """Return the expected lead, in points of score, of the luckiest of equally good models over their common score.

    Args:
        models: For each model, task → (items,) metric values in [0, 1]; the same items for all.
        weights: Task → weight in the score.
        chances: Task → chance level.
        groups: Task → group of each item, for tasks whose items are not independent.
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((DRAWS, len(models)))
    for task, scale in scales(weights, chances).items():
        found = [units(columns[task] - columns[task].mean(), (groups or {}).get(task)) for columns in models]
        sums, sizes = np.stack([one.sums for one in found]), found[0].sizes  # (models, units), (units,)
        drawn = rng.multinomial(sizes.size, np.full(sizes.size, 1.0 / sizes.size), DRAWS)  # (draws, units)
        total += scale * (drawn @ sums.T) / (drawn @ sizes)[:, None]
    return max(0.0, float(total.max(axis=1).mean()))  # equal models have none, up to the noise of the draws
