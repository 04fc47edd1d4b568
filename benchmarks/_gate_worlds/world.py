"""Item responses of models with known true accuracy (a probit model in numpy).

Model j answers item i correctly if  √ρ zᵢ + √(1-ρ) (√γ u_jg + √(1-γ) e_ij) < Φ⁻¹(p_j).  zᵢ is the item's difficulty,
shared by all models; u_jg is the effect of the item's group g (a passage, a subject) on model j; all are standard
normal. A model's accuracy over the population of items is therefore p_j for every ρ and γ, and two models of the same
accuracy answer a share  4 T(Φ⁻¹(p), √((1-ρ)/(1+ρ)))  of the items differently (T is Owen's function; γ = 0).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, owens_t


@dataclass(frozen=True)
class Task:
    """One task of a simulated suite."""

    weight: float
    chance: float
    accuracy: float  # true accuracy of the best parent
    differ: float  # share of items that two models of this accuracy answer differently
    items: int  # of the test split
    groups: tuple[int, ...] = ()  # sizes of the test split's groups; empty for ungrouped items
    shared: float = 0.0  # γ: correlation of a model's answers within a group

    @property
    def correlation(self) -> float:
        """ρ, computed from the share of items that are answered differently."""
        limit = ndtri(self.accuracy)
        return float(brentq(lambda rho: 4 * owens_t(limit, ((1 - rho) / (1 + rho)) ** 0.5) - self.differ, 0.0, 1.0))

    def group_names(self) -> tuple[str, ...]:
        """Group of each item."""
        return tuple(str(index) for index, size in enumerate(self.groups) for _ in range(size))


def uneven(groups: int, items: int) -> tuple[int, ...]:
    """Group sizes as in real data sets: from one item to several times the mean."""
    rank = (np.arange(groups) + 0.5) / groups
    sizes = np.maximum(1, np.round(-np.log(rank) * items / groups)).astype(int)  # exponential, by its quantiles
    sizes[0] += items - sizes.sum()
    return tuple(int(size) for size in sizes)


def answers(
    task: Task, accuracies: NDArray[np.float64], searches: int, items: int, rng: np.random.Generator, grouped: bool
) -> NDArray[np.float32]:
    """Draw answers (searches, models, items), 1 if right; the models of one search share their items.

    Args:
        task: The task.
        accuracies: True accuracies, (models,).
        searches: Number of searches.
        items: Number of items.
        rng: Random generator.
        grouped: Whether to divide the items into the task's groups.
    """
    shape = (searches, accuracies.size, items)
    own = rng.standard_normal(shape, dtype=np.float32)
    if grouped and task.groups:
        effect = rng.standard_normal((*shape[:2], len(task.groups)), dtype=np.float32)
        effect = np.repeat(effect, task.groups, axis=2)
        own = np.float32(task.shared**0.5) * effect + np.float32((1 - task.shared) ** 0.5) * own
    hard = rng.standard_normal((searches, 1, items), dtype=np.float32)
    rho = task.correlation
    latent = np.float32(rho**0.5) * hard + np.float32((1 - rho) ** 0.5) * own
    limits = np.asarray(ndtri(accuracies), dtype=np.float32)
    return np.asarray(latent < limits[:, None], dtype=np.float32)
