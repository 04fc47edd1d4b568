"""Lineage: whether models are fine-tunes of one base, judged by the distance of their weights from it.

Independently trained matrices are nearly orthogonal, so the change from one to the other is longer than the base: ‖θ
− θ₀‖² = ‖θ‖² + ‖θ₀‖². A fine-tune stays near its base. Norm gains are near 1 in every model and embeddings depend on
the vocabulary, so only the matrices of layers are judged; figures of the other two are for the reader.

| measured (median over matrices) | relative change | cosine to the base |
|---|---|---|
| tiny zoo, four fully fine-tuned experts | 0.14 to 0.19, single matrices up to 0.30 | 0.98 to 0.99 |
| SmolLM2-135M, three LoRA experts | 0.003 to 0.004, single matrices up to 0.01 | 1.00 |
| tiny zoo, base of another seed | 1.40, single matrices from 1.26 | 0.00, single matrices within ±0.02 |
| SmolLM2-135M, random weights | 1.01 | 0.00, single matrices within ±0.01 |

`benchmarks/lineage.py` prints them.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evosearch.analysis.inner_products import Gram, cosine, cosine_to_base, relative_change

# Both must hold. An unrelated model of any scale has a relative change of √(1 + (‖θ‖/‖θ₀‖)²) ≥ 1; the cosine spares
# fine-tunes whose weights grew. No measured cosine is between 0.02 and 0.96.
LEAST_CHANGE = 0.9
MOST_COSINE = 0.25
SAME_BASE = 0.75  # cosine of two changes from a wrong base that have another base in common; 0.5 for two strangers

Group = Literal["matrices", "embeddings", "norms"]


@dataclass(frozen=True)
class TensorLineage:
    """Figures of one tensor, or of several: of one model against the base.

    Attributes:
        relative: ‖τ‖ / ‖θ₀‖.
        cosine: cos(θ, θ₀); None if one of the two is zero.
        others: cos(τ, τⱼ) for every other model j, in order; None if one of the two is zero.
    """

    relative: float
    cosine: float | None
    others: tuple[float | None, ...]


@dataclass(frozen=True)
class ModelLineage:
    """Figures of one model against the base, and the verdict.

    Attributes:
        related: Whether the model is a fine-tune of the base, as far as the weights tell.
        relative: Group → median of ‖τ‖ / ‖θ₀‖ over its tensors.
        cosine: Group → median of cos(θ, θ₀).
        others: Median of cos(τ, τⱼ) over the matrices, for every other model j in order.
        overall: Group → figures of all its tensors together.
        tensors: Tensor → its figures.
    """

    related: bool
    relative: Mapping[Group, float]
    cosine: Mapping[Group, float | None]
    others: tuple[float | None, ...]
    overall: Mapping[Group, TensorLineage]
    tensors: Mapping[str, TensorLineage]

    @property
    def another_base(self) -> bool:
        """Whether the model is unrelated to the base, but shares another one with a further model."""
        return not self.related and any(other is not None and other >= SAME_BASE for other in self.others)


def lineage(grams: Mapping[str, tuple[Group, Gram]]) -> tuple[ModelLineage, ...]:
    """Judge for every model whether it is a fine-tune of the base.

    Args:
        grams: Tensor → its group and the inner products of the base and of every model's change, see
            `inner_products`. A sample of rows is enough.

    Returns:
        One entry for every model. Without matrices every model counts as related.
    """
    models = next(iter(grams.values()))[1].shape[0] - 1 if grams else 0
    return tuple(_of_model(grams, model, models) for model in range(models))


def is_related(relative: float | None, cosine: float | None) -> bool:
    """Return the verdict from the medians over matrices; without figures there is nothing to object to."""
    return relative is None or cosine is None or relative < LEAST_CHANGE or cosine > MOST_COSINE


def _of_model(grams: Mapping[str, tuple[Group, Gram]], model: int, models: int) -> ModelLineage:
    others = [other for other in range(models) if other != model]
    tensors = {name: _figures(gram, model, others) for name, (_, gram) in grams.items()}
    of_group: dict[Group, list[str]] = {}
    for name, (group, _) in grams.items():
        of_group.setdefault(group, []).append(name)
    relative = {group: _median([tensors[name].relative for name in names]) for group, names in of_group.items()}
    to_base = {group: _median([tensors[name].cosine for name in names]) for group, names in of_group.items()}
    matrices = of_group.get("matrices", [])
    between = tuple(_median([tensors[name].others[k] for name in matrices]) for k in range(len(others)))
    sums = {group: sum(grams[name][1] for name in names) for group, names in of_group.items()}
    return ModelLineage(
        related=is_related(relative.get("matrices"), to_base.get("matrices")),
        relative={group: math.inf if value is None else value for group, value in relative.items()},
        cosine=to_base,
        others=between,
        overall={group: _figures(gram, model, others) for group, gram in sums.items() if not isinstance(gram, int)},
        tensors=tensors,
    )


def _figures(gram: Gram, model: int, others: Sequence[int]) -> TensorLineage:
    between = tuple(cosine(gram, model, other) for other in others)
    return TensorLineage(relative_change(gram, model), cosine_to_base(gram, model), between)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
