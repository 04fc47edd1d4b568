"""The search spec: one YAML file that says what is searched, how, on what, and for how long.

Each room owns its part of it; here they are put together, and the search gets its identity. `search_id` leaves out
budget, workers, tracking and ledger: a search may go on with more time, on other machines, under another server.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import LedgerError, SpecError
from evosearch.evaluation.suite import Suite, load_suite
from evosearch.recipe.files import anchor
from evosearch.recipe.identity import digest
from evosearch.search.controls import SCALES
from evosearch.search.optimizers.registry import OptimizerConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class BudgetConfig(Document):
    """When to stop asking: at so many candidates, or so many hours, whichever comes first."""

    candidates: PositiveInt | None = None
    hours: PositiveFloat | None = None

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.candidates is None and self.hours is None:
            raise ValueError("give candidates, hours, or both: a search has an end")
        return self


class WorkersConfig(Document):
    """Who scores. `auto` takes one worker a GPU, or one for every two CPU cores; `threads` is of one worker."""

    executor: Literal["ray", "local"] = "ray"
    count: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt | None = None
    gpus_per_worker: NonNegativeFloat | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: PositiveInt | None = None
    address: str | None = None


class TrackingConfig(Document):
    """Where MLflow records: a tracking URI (default: a SQLite file beside the runs) and an experiment."""

    uri: str | None = None
    experiment: str | None = None


class ControlsConfig(Document):
    """The task-arithmetic scales of the control sweep."""

    scales: tuple[float, ...] = SCALES

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        named = [f"{scale:.2f}" for scale in self.scales]
        if len(set(named)) < len(named):
            raise ValueError(f"two scales are alike to two decimals, which name them: {list(self.scales)}")
        return self


class PromotionConfig(Document):
    """How many finalists go to validation, and what the winner is registered as.

    `checkpoint: true` uploads the merged weights with the registered version, not only the recipe.
    """

    register_as: Name | None = None
    finalists: PositiveInt = 8
    checkpoint: bool = False


class SpecFile(Document):
    """A search spec as it is written."""

    name: Name
    recipe: dict[str, Any]
    optimizer: OptimizerConfig
    suite: str
    budget: BudgetConfig
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()
    ledger: str | None = None
    controls: ControlsConfig = ControlsConfig()
    promotion: PromotionConfig = PromotionConfig()


@dataclass(frozen=True)
class SearchSpec:
    """A spec that was read, with its suite loaded and relative folders made absolute."""

    file: Path
    config: SpecFile
    template: dict[str, Any]  # the recipe with holes, folders absolute
    suite: Suite

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def where(self) -> str:
        """The prefix of errors about the recipe: `night.yaml: recipe`."""
        return f"{self.file}: recipe"

    def identity(self) -> dict[str, Any]:
        """What makes this search this search, as plain data; recorded, and compared at resume."""
        config = self.config.model_dump(mode="json", exclude={"budget", "workers", "tracking", "ledger"})
        chances = {task.name: task.chance for task in self.suite.tasks}
        measure = {"weights": self.suite.weights(), "chances": chances}
        return config | {"suite": {"name": self.suite.name, "digest": self.suite.digest()} | measure}

    def search_id(self) -> str:
        return digest(self.identity())


def load_spec(path: Path) -> SearchSpec:
    """A search spec from a YAML file; its suite is loaded too.

    Raises:
        SpecError, RecipeError, SuiteError: the message names the file and the key.
    """
    data = documents.read(path, SpecError)
    config = documents.validate(SpecFile, data, str(path), SpecError)
    suite_path = Path(os.path.expanduser(config.suite))
    suite_path = suite_path if suite_path.is_absolute() else path.parent / suite_path
    if not os.path.isfile(suite_path):
        raise SpecError(f"{path}: suite", f"no file {suite_path}", next="Suites are YAML files, as in evals/")
    return SearchSpec(path, config, anchor(config.recipe, path.parent), load_suite(suite_path))


def is_spec(path: Path) -> bool:
    """Whether a YAML file is a search spec (it has a `recipe`) rather than a recipe."""
    return any("recipe" in data for data in documents.read_all(path, SpecError))


def check_same_search(recorded: Mapping[str, Any], spec: SearchSpec, where: str) -> None:
    """Stop a run whose spec is not the one that the ledger of this name records.

    Raises:
        LedgerError: names the first key that differs.
    """
    old, new = flat(recorded), flat(spec.identity())
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if not differing:
        return
    key = differing[0]
    raise LedgerError(
        f"{spec.file}: {key}",
        f"this is another search: '{spec.name}' in {where} was started with {_shown(old.get(key))}, "
        f"the file says {_shown(new.get(key))}",
        "Budget, workers, tracking and ledger may change between runs",
        "Undo the change, or give the new search another name",
    )


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Plain data as one level: `tasks[0].weight` → its value."""
    if isinstance(node, Mapping):
        out: dict[str, Any] = {}
        for key, value in node.items():
            out |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return out
    if isinstance(node, list):
        out = {}
        for index, value in enumerate(node):
            out |= flat(value, f"{prefix}[{index}]")
        return out
    return {prefix: node}


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
