"""Optimizers under comparison: every registered one, some in several settings."""

from dataclasses import dataclass, field
from typing import Any

from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers.registry import load, names

# Optimizer → label → options; optimizers without an entry run with their defaults
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "cma_es": {"cma_es": {}, "cma_es, diagonal": {"diagonal": True}, "cma_es, restarts": {"restarts": 3}},
}
# Limit of evaluations for optimizers whose `ask` slows down with the number of trials; not applied with `--slow`
LIMITS = {"tpe": 200, "gp": 50}


@dataclass(frozen=True)
class Contestant:
    """An optimizer in one setting."""

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> OptimizerConfig:
        """The optimizer section of a spec, with this seed."""
        return OptimizerConfig.model_validate({"name": self.name, "seed": seed} | self.options)

    @property
    def categoricals(self) -> bool:
        """Whether the optimizer supports categorical dimensions."""
        return load(self.name).categoricals

    def limit(self, evaluations: int, slow: bool) -> int:
        """Number of evaluations for this optimizer: `evaluations`, or fewer if it is slow and `slow` is not set."""
        return evaluations if slow else min(evaluations, LIMITS.get(self.name, evaluations))


def contestants(chosen: list[str] | None = None) -> list[Contestant]:
    """All contestants, or those with the labels in `chosen`; random search comes first."""
    found = [
        Contestant(label, name, options)
        for name in sorted(names(), key=lambda name: (name != "random", name))
        for label, options in VARIANTS.get(name, {name: {}}).items()
    ]
    return [one for one in found if chosen is None or one.label in chosen]
