"""Who is compared: every registered optimizer, some of them in several settings, with the spec's other defaults."""

from dataclasses import dataclass, field
from typing import Any

from evosearch.search.optimizers.registry import OptimizerConfig, load, names

# Settings of an optimizer that are compared, by label; what is not here runs as it is by default
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "cma_es": {"cma_es": {}, "cma_es, diagonal": {"diagonal": True}, "cma_es, restarts": {"restarts": 3}},
}
# Slow ones go to fewer evaluations, unless all are asked for: an ask of theirs takes longer the more they were told
PATIENCE = {"tpe": 200, "gp": 50}


@dataclass(frozen=True)
class Contestant:
    """An optimizer in one setting."""

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> OptimizerConfig:
        return OptimizerConfig.model_validate({"name": self.name, "seed": seed} | self.options)

    @property
    def categoricals(self) -> bool:
        return load(self.name).categoricals

    def most(self, evaluations: int, slow: bool) -> int:
        """How many of so many evaluations this one gets."""
        return evaluations if slow else min(evaluations, PATIENCE.get(self.name, evaluations))


def contestants(chosen: list[str] | None = None) -> list[Contestant]:
    """All, or those whose label is named; random search comes first."""
    found = [
        Contestant(label, name, options)
        for name in sorted(names(), key=lambda name: (name != "random", name))
        for label, options in VARIANTS.get(name, {name: {}}).items()
    ]
    return [one for one in found if chosen is None or one.label in chosen]
