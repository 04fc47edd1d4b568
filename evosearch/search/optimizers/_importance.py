"""fANOVA of a recorded search: which dimensions explain the variance of the fitness."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from evosearch.recipe.shapes import Scalar

TREES, DEPTH = 32, 32

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it reports every study


def fanova(genomes: Sequence[Mapping[str, Scalar]], values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return dimension → share of the variance that it explains by itself, largest first; the shares sum to one.

    The box is the one that the genomes span. Dimensions with one value have no share.

    Args:
        genomes: Dimension → value, the same dimensions in each.
        values: Fitness of each genome.
        seed: Seed of the random forest.

    Source: Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (eq. 5).
    """
    boxes = {name: _box([genome[name] for genome in genomes]) for name in genomes[0]}
    kept = {name: box for name, box in boxes.items() if box is not None}
    if not kept:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trials = [
            optuna.trial.create_trial(
                params={name: genome[name] for name in kept}, distributions=kept, value=float(value)
            )
            for genome, value in zip(genomes, values, strict=True)
        ]
        study = optuna.create_study(direction="maximize")
        study.add_trials(trials)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _box(values: Sequence[Scalar]) -> Any:
    """Return the distribution that spans some values; None for a single one."""
    if len(set(values)) < 2:
        return None
    if any(isinstance(value, bool | str) for value in values):
        return optuna.distributions.CategoricalDistribution(sorted(set(values), key=str))
    numbers = [float(value) for value in values]
    if all(isinstance(value, int) for value in values):
        return optuna.distributions.IntDistribution(int(min(numbers)), int(max(numbers)))
    return optuna.distributions.FloatDistribution(min(numbers), max(numbers))
