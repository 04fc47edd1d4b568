"""The text of a first search spec, with a reason for every choice."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.checkpoints import references
from evosearch.search.optimizers.registry import AUTO
from evosearch.search.sampling import BACKWARD
from evosearch.service.init_models import Found, recipe_of
from evosearch.setup.prepare import Prepared
from evosearch.spec.draft import Section, local_reference, name_of, render

STEPS = 64  # of the gradient
CANDIDATES_PER_NUMBER, FEWEST, MOST = 8, 100, 400  # without a gradient
GROUPS = 4
HIGHEST = 1.5  # weight of a task vector


@dataclass(frozen=True)
class InitReport:
    """Result of `init`.

    Attributes:
        out: The spec.
        models: The models that are merged.
        base: Their base; None without one.
        method: Merge method.
        optimizer: Optimizer.
        dimensions: Number of search parameters.
        suite: The suite.
        notes: What was found and chosen, one sentence each.
    """

    out: str
    models: tuple[str, ...]
    base: str | None
    method: str
    optimizer: str
    dimensions: int
    suite: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A spec in the making.

    Attributes:
        out: Its file.
        found: What the models show.
        suite: The suite's path as the spec writes it.
        why_suite: Why it was taken.
        optimizer: The optimizer; `auto` as long as it is not known whether there is a gradient.
        obstacle: Why there is none; empty if there is one.
        prepared: The same draft, prepared; None at first.
        licences: A sentence on the licences.
    """

    out: Path
    found: Found
    suite: str
    why_suite: str
    optimizer: str = AUTO
    obstacle: str = ""
    prepared: Prepared | None = None
    licences: str = ""

    def text(self) -> str:
        """Return the YAML, with comments."""
        name = name_of(self.out)
        sections = [
            Section("name", name, ("Name of the search, of its folder under runs/, and of its MLflow experiment.",)),
            Section("recipe", recipe_of(self.found, self._hole(), self._local), self._why_recipe()),
            Section("optimizer", {"name": self.optimizer, "seed": 0}, self._why_optimizer()),
            Section("suite", self.suite, (self.why_suite,)),
            Section("budget", self._budget(), self._why_budget()),
            Section("promotion", {"register_as": name}, ("The champion's name in the model registry.",)),
        ]
        return render(self._head(), sections)

    def report(self) -> InitReport:
        """Return what was found and chosen."""
        assert self.prepared is not None
        base = self.found.base.reference if self.found.base else None
        method = str(recipe_of(self.found, 1.0)["merge_method"])
        notes = (*self._head()[1:-1], *self._why_recipe(), *self._why_optimizer(), *self._why_budget())
        count = len(self.prepared.space.dimensions)
        name = self.prepared.optimizer.name
        return InitReport(str(self.out), self.found.parents, base, method, name, count, self.suite, notes)

    def _local(self, reference: str) -> str:
        pieces = [piece for piece in references.split(reference) if piece is not None]
        if reference not in pieces and "+".join(pieces) != reference:
            pieces = [reference]  # a task vector alone names its base itself
        return "+".join(local_reference(piece, self.out.parent) for piece in pieces)

    def _hole(self) -> dict[str, Any]:
        layers = self.found.first.shape.num_layers
        high = HIGHEST if self.found.base else 1.0
        start = {} if self.found.base else {"init": round(1 / len(self.found.parents), 4)}
        if not self.obstacle:
            return {"low": 0.0, "high": high, **start, "per": "tensor"}
        return {"low": 0.0, "high": high, **start, "per": "group", "groups": min(GROUPS, layers), "ends": "shared"}

    def _head(self) -> list[str]:
        found, first = self.found, self.found.first
        lines = [
            "A first search spec, written by `evosearch init`. Everything in it may be changed.",
            f"Models: {first.shape.architecture}, {first.shape.num_layers} layers each.",
        ]
        if found.base:
            lines.append(f"Base: {self._local(found.base.reference)}, since {found.base.why}.")
        else:
            lines.append(
                "Base: none was found; with one (--base), task vectors and a sweep of their scale are possible."
            )
        if self.licences:
            lines.append(self.licences)
        return [*lines, f"Next: evosearch check {self.out}, then evosearch run {self.out}"]

    def _why_recipe(self) -> tuple[str, ...]:
        if self.found.base:
            why = "task_arithmetic adds each model's change from the base, times a weight."
        else:
            why = "linear averages the models with weights, which needs no base."
        layers = self.found.first.shape.num_layers
        if not self.obstacle:
            holes = "A weight for every tensor of every model: a gradient finds any number of them at the same cost."
        else:
            parts = min(GROUPS, layers)
            holes = f"A weight for each of {parts} runs of layers: few numbers, since there is no gradient."
        union = f"tokenizer: the models' tokens are united: {self.found.union}." if self.found.union else ""
        return tuple(filter(None, (why, holes, union)))

    def _why_optimizer(self) -> tuple[str, ...]:
        if not self.obstacle:
            return ("gradient: fitness and merge have a derivative (docs/guides/optimizers.md).",)
        return (f"{self.optimizer}, which needs no derivative: {self.obstacle}.",)

    def _budget(self) -> dict[str, int]:
        if self.prepared is None:
            return {"items": 10**9}  # of a draft that is only prepared
        if self.obstacle:
            return {"candidates": self._candidates()}
        return {"items": self._items()}

    def _candidates(self) -> int:
        assert self.prepared is not None
        return max(FEWEST, min(MOST, CANDIDATES_PER_NUMBER * len(self.prepared.space.dimensions)))

    def _items(self) -> int:
        """Return the item evaluations of `STEPS` steps, and of the scorings on the held-back part between them."""
        assert self.prepared is not None
        steps, options = self.prepared.steps, self.prepared.optimizer.options
        assert steps is not None
        batch = sum(map(len, steps.batches[: steps.shards]))
        held = len(steps.held_back) if steps.held_back is not None else 0
        total = STEPS * (1 + BACKWARD) * batch + STEPS // int(options["check_every"]) * held
        return math.ceil(total / 100) * 100

    def _why_budget(self) -> tuple[str, ...]:
        if self.prepared is None:
            return ()
        first = f"{self.prepared.share_of_baselines}; the budget does not count them."
        if self.obstacle:
            count = len(self.prepared.space.dimensions)
            return (f"{CANDIDATES_PER_NUMBER} candidates for each of {count} numbers, {FEWEST} to {MOST}. {first}",)
        return (f"About {STEPS} steps of the gradient, each as dear as three scorings of its documents. {first}",)
