"""Item responses of merged models with known true accuracy (an item response model in numpy).

A model has abilities a_t, one for each of T tasks, and a place x in R^D, which identifies the merge. It answers item i
of task t correctly if

    a_t - z_i - σ vᵢ·x / √D - η e_i(x) > 0

z_i is the difficulty of the item, shared by all models. vᵢ is the preference of the item for places: a finite set of
items favours some models that are not better, so a search can overfit. e_i(x) is noise with a fixed value for each
place, which makes some answers flip with every change of weights. All are standard normal, so a model's accuracy over
the population of items is  Φ(a_t / √(1 + σ²|x|²/D + η²)).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from evosearch.search.space.dimensions import Estimate

Vector = NDArray[np.float64]
SLOPE = 1.7  # a logistic function of this slope approximates Φ


@dataclass(frozen=True)
class World:
    """The items of one search.

    Attributes:
        task: Task of each item, (n,).
        difficulty: z, (n,).
        taste: v, (n, D).
        suits: σ, the strength of the items' preferences.
        rough: η, the strength of the noise at each place.
        smooth: Whether fitness is the mean log-probability of the right answer, instead of the accuracy in %.
    """

    task: NDArray[np.int64]
    difficulty: Vector
    taste: Vector
    suits: float
    rough: float
    smooth: bool
    seed: int

    @classmethod
    def draw(
        cls, seed: int, tasks: int, items: int, places: int, suits: float = 0.5, rough: float = 0.0, smooth: bool = True
    ) -> "World":
        """Draw the items.

        Args:
            items: Number of items n, divided evenly among the tasks.
            places: Dimension D of places.
        """
        rng = np.random.default_rng([seed, 1])
        task = np.arange(items) % tasks
        return cls(task, rng.standard_normal(items), rng.standard_normal((items, places)), suits, rough, smooth, seed)

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.task)

    def fitness(self, abilities: Vector, place: Vector) -> Estimate:
        """Fitness of a model with abilities (T,) at a place (D,), as reported to an optimizer."""
        margins = self._margins(abilities, place)
        if self.rough:
            words = np.frombuffer(hashlib.sha256(place.tobytes()).digest(), dtype=np.uint32)
            margins = margins - self.rough * np.random.default_rng([self.seed, *words]).standard_normal(self.items)
        scores = np.log(expit(SLOPE * margins)) if self.smooth else 100.0 * (margins > 0)
        return Estimate(float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(self.items)), self.items)

    def fitness_slope(self, abilities: Vector, place: Vector, gradients: Vector) -> Vector:
        """Gradient (D,) of the fitness with respect to the place, given those of the abilities, (T, D).

        d/dx mean log σ(s mᵢ) = mean s (1 − σ(s mᵢ)) ∇mᵢ        mᵢ margin of item i, s the slope
        """
        assert self.smooth, "right answers have no derivative"
        assert not self.rough, "neither has noise"
        rates = SLOPE * (1.0 - expit(SLOPE * self._margins(abilities, place)))  # (n,)
        along = gradients[self.task] - self.suits * self.taste / np.sqrt(len(place))  # (n, D)
        return np.asarray((rates[:, None] * along).mean(0))

    def _margins(self, abilities: Vector, place: Vector) -> Vector:
        tastes = self.suits * (self.taste @ place) / np.sqrt(len(place))
        return np.asarray(abilities[self.task] - self.difficulty - tastes)

    def accuracy(self, abilities: Vector, place: Vector) -> float:
        """True accuracy in %, the mean over tasks; a test split estimates it."""
        return float(100.0 * ndtr(abilities / self._spread(place)).mean())

    def slope(self, abilities: Vector, place: Vector, gradients: Vector) -> Vector:
        """Gradient (D,) of the accuracy with respect to the place, given those of the abilities, (T, D)."""
        spread = self._spread(place)
        density = np.exp(-0.5 * (abilities / spread) ** 2) / np.sqrt(2.0 * np.pi)  # φ(a/s)
        widening = self.suits**2 * place / len(place) / spread  # ∇s
        along = density[:, None] * (gradients / spread - np.outer(abilities / spread**2, widening))
        return np.asarray(100.0 * along.mean(0))

    def _spread(self, place: Vector) -> float:
        return float(np.sqrt(1.0 + self.suits**2 * float(place @ place) / len(place) + self.rough**2))
