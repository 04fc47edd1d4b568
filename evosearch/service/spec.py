"""The search spec: one YAML file that says what is searched, how, on what, and for how long.

Each room owns its part of it; here they are put together, and the search gets its identity. `search_id` leaves out
budget, workers, tracking and ledger: a search may go on with more time, on other machines, under another server.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import LedgerError, SpecError
from evosearch.evaluation.suite import Suite, load_suite
from evosearch.recipe.files import anchor
from evosearch.recipe.identity import digest
from evosearch.search.controls import SCALES
from evosearch.search.optimizers.registry import OptimizerConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]


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
    batch_tokens: PositiveInt | None = None  # of one forward pass; default: 2048 on a CPU, 8192 on a GPU
    cached_tokens: PositiveInt | None = None  # keys and values of what is continued together; default: 32768
    address: Text | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        """Nothing is given that the executor or the device would not look at."""
        if self.executor == "local":
            for key, given in (("address", self.address), ("gpus_per_worker", self.gpus_per_worker)):
                if given is not None:
                    raise SpecError(key, "goes with executor: ray", next="Remove it, or the executor line")
            if self.count not in ("auto", 1):
                raise SpecError("count", f"got {self.count}", "executor: local is one worker", "executor: ray")
        if self.device == "cpu" and self.gpus_per_worker:
            raise SpecError("gpus_per_worker", f"got {self.gpus_per_worker:g} with device: cpu", "0", "Leave it out")
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise SpecError("gpus_per_worker", "got 0 with device: cuda", "More than 0", "Leave it out, or the device")
        return self


class TrackingConfig(Document):
    """Where MLflow records: a tracking URI (default: a SQLite file beside the runs) and an experiment.

    `jsonl:FILE` writes JSON lines in the search's folder instead, which know no experiments.
    """

    uri: Text | None = None
    experiment: Text | None = None

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        if self.experiment is not None and (self.uri or "").startswith("jsonl:"):
            raise SpecError("experiment", "JSON lines have no experiments", "An MLflow uri", "Remove one of the two")
        return self


class ControlsConfig(Document):
    """The task-arithmetic scales of the control sweep."""

    scales: tuple[FiniteFloat, ...] = SCALES

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
    """A search spec as it is written.

    `search_parts` deals the search split out to so many parts; each generation is then scored on one of them, in
    rotation, and the best candidates on all of it before finalists are chosen.
    """

    name: Name
    recipe: dict[str, Any]
    optimizer: OptimizerConfig
    suite: str
    search_parts: Annotated[int, Field(ge=2, le=100_000)] | None = None
    budget: BudgetConfig
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()
    ledger: Text | None = None
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
        if config["search_parts"] is None:  # a search without this key keeps the id it had before there was one
            del config["search_parts"]
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
    suite = load_suite(suite_path)
    _check_parts(config.search_parts, suite, str(path))
    return SearchSpec(path, config, anchor(config.recipe, path.parent), suite)


def _check_parts(parts: int | None, suite: Suite, file: str) -> None:
    fewest = min(suite.tasks, key=lambda task: suite.count(task, "search"))
    count = suite.count(fewest, "search")
    if parts is not None and parts > count:
        what = f"got {parts}, and '{fewest.name}' has {count} documents on search"
        raise SpecError(f"{file}: search_parts", what, "A document of every task in each part", "Ask for fewer parts")


def is_spec(path: Path) -> bool:
    """Whether a YAML file is a search spec (it has a `recipe`) rather than a recipe."""
    return any("recipe" in data for data in documents.read_all(path, SpecError))


def is_suite(path: Path) -> bool:
    """Whether a YAML file is a suite (one document, which has `tasks`) rather than a search spec or a recipe."""
    found = documents.read_all(path, SpecError)
    return len(found) == 1 and "tasks" in found[0] and not {"recipe", "merge_method", "models"} & found[0].keys()


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
