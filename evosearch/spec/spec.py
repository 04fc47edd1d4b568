"""The search spec: one YAML file that says what is searched, how, on what, and for how long.

Each room owns its part of it; here they are put together, and the search gets its identity. `search_id` leaves out
budget, workers, tracking and ledger: a search may go on with more time, on other machines, under another server.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import LedgerError, SpecError
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.recipe.files import STAGE, anchor
from evosearch.recipe.identity import digest
from evosearch.search.baselines import SCALES
from evosearch.search.optimizers.registry import OptimizerConfig, load
from evosearch.spec.credentials import Url
from evosearch.spec.objectives import check_objectives

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
SearchMinibatches = Annotated[int, Field(ge=2, le=100_000)]
Objectives = Annotated[tuple[Text, ...], Field(min_length=2, max_length=4)]
ADDRESS = re.compile(r"auto|[^\s/:@]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")  # of a Ray cluster's head node
LATER = ("warm_start", "diagonal", "restarts", "points")  # keys of `optimizer` that ids of the first searches lack
OF_A_STAGE = (
    "recipe",
    "optimizer",
    "budget",
    "search_minibatches",
    "objectives",
)  # keys that each stage has for itself


class BudgetConfig(Document):
    """When to stop asking, whichever comes first.

    After so many candidates, hours, or item evaluations (`items`, of candidates alone); once the optimizer is told of a
    fitness of `target` or more that breaks no guard; after `patience` candidates in a row that were not the best.
    """

    candidates: PositiveInt | None = None
    hours: PositiveFloat | None = None
    items: PositiveInt | None = None
    target: FiniteFloat | None = None
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.candidates is None and self.hours is None and self.items is None:
            raise ValueError("give candidates, hours or items: a search has an end, though it miss target and patience")
        return self


class WorkersConfig(Document):
    """Who scores: workers on this machine, or on a Ray cluster.

    `count: auto` is one worker a GPU, or one for every two CPU cores; with `address` (HOST:PORT, or `auto` for the
    cluster that this machine is a node of), or within a Ray job, as many as the cluster gives, as its nodes come and
    go. `gpus_per_worker` below 1 shares a card; whole numbers from 2 on are for models larger than one; by default 1
    where there are GPUs. `threads` is of one worker, and the CPU cores it takes.
    """

    executor: Literal["ray", "local"] = "ray"
    count: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt | None = None
    gpus_per_worker: NonNegativeFloat | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: PositiveInt | None = None  # of one forward pass; default: 2048 on a CPU, measured on a GPU
    cached_tokens: PositiveInt | None = None  # keys and values of what is continued together; default: 32768
    address: Url | None = None
    price_per_hour: NonNegativeFloat | None = None  # of one worker, in any currency: what `check` reckons with

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        """Nothing is given that the executor or the device would not look at."""
        if self.executor == "local":
            for key, given in (("address", self.address), ("gpus_per_worker", self.gpus_per_worker)):
                if given is not None:
                    raise SpecError(key, "goes with executor: ray", next="Remove it, or the executor line")
            if self.count not in ("auto", 1):
                raise SpecError("count", f"got {self.count}", "executor: local is one worker", "executor: ray")
        if self.gpus_per_worker is not None and self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            allowed = "Up to 1: a part of a card. From 2 on, whole cards: a model is laid out over them"
            raise SpecError("gpus_per_worker", f"got {self.gpus_per_worker:g}", allowed)
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            next = "From a machine that is no node of the cluster: evosearch submit SPEC --address http://HOST:8265"
            raise SpecError("address", f"got '{self.address}'", "HOST:PORT of the head node, or auto", next)
        if self.device == "cpu" and self.gpus_per_worker:
            raise SpecError("gpus_per_worker", f"got {self.gpus_per_worker:g} with device: cpu", "0", "Leave it out")
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise SpecError("gpus_per_worker", "got 0 with device: cuda", "More than 0", "Leave it out, or the device")
        return self


class TrackingConfig(Document):
    """Where MLflow records: a tracking URI (default: a SQLite file beside the runs) and an experiment.

    `jsonl:FILE` writes JSON lines in the search's folder instead, which know no experiments.
    """

    uri: Url | None = None
    experiment: Text | None = None

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        if self.experiment is not None and (self.uri or "").startswith("jsonl:"):
            raise SpecError("experiment", "JSON lines have no experiments", "An MLflow uri", "Remove one of the two")
        return self


class BaselinesConfig(Document):
    """The task-arithmetic scales of the baseline sweep, and what baselines are made of beside the recipe's own models.

    `base_model` is their base where the recipe has none. `models` are what uniform average and sweep are made of, and
    parents beside the recipe's own, each a baseline alone.
    """

    scales: tuple[FiniteFloat, ...] = SCALES
    base_model: Text | None = None
    models: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        named = [f"{scale:.2f}" for scale in self.scales]
        if len(set(named)) < len(named):
            raise ValueError(f"two scales are alike to two decimals, which name them: {list(self.scales)}")
        return self


class PromotionConfig(Document):
    """How many finalists go to validation, and what the winner is registered as.

    `checkpoint: true` uploads the merged weights with the registered version, not only the recipe. `licences` are those
    that a model's card may name, by the hub's names: a model of another, or of none that its card states, is refused.
    """

    register_as: Name | None = None
    finalists: PositiveInt = 8
    checkpoint: bool = False
    licences: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None


class SpecFile(Document):
    """A search spec as it is written.

    `search_minibatches` deals the search split out to so many parts; each generation is then scored on one of them, in
    rotation, and the best candidates on all of it before finalists are chosen. `objectives` are told to the optimizer
    in place of the suite's fitness, which goes on deciding about finalists: `fitness`, `score`, a task, or `hops`.
    """

    name: Name
    recipe: dict[str, Any]
    optimizer: OptimizerConfig
    suite: str
    search_minibatches: SearchMinibatches | None = None
    objectives: Objectives | None = None
    budget: BudgetConfig
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()
    ledger: Url | None = None
    baselines: BaselinesConfig = BaselinesConfig()
    promotion: PromotionConfig = PromotionConfig()


@dataclass(frozen=True)
class Winner:
    """What a stage found: a recipe, which later stages name as `stage:NAME`."""

    recipe: Mapping[str, Any]  # as plain data; what it names is absolute, or one of `recipes`
    recipe_id: str
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # reference → recipe, of those it is made of
    place: Path | None = None  # of a model, or a recipe file, that is named in place of it

    def reference(self, name: str) -> str:
        """What models of a later stage call it.

        Args:
            name: of the stage.
        """
        return f"{STAGE}{name}" if self.place is None else str(self.place)


@dataclass(frozen=True)
class Stage:
    """Which stage of a spec of stages a search is."""

    whole: str  # the name of the spec
    name: str
    index: int
    last: bool = False  # it ends at the gate
    winners: Mapping[str, Winner] = field(default_factory=dict)  # of the earlier stages that this one builds on

    @property
    def recipes(self) -> dict[str, Mapping[str, Any]]:
        """Reference → recipe, of the winners that this one builds on, and of what they are made of."""
        found: dict[str, Mapping[str, Any]] = {}
        for name, winner in self.winners.items():
            found |= {**winner.recipes, winner.reference(name): winner.recipe} if winner.place is None else {}
        return found


@dataclass(frozen=True)
class SearchSpec:
    """One search as it was read, with its suite loaded and relative folders made absolute."""

    file: Path
    config: SpecFile
    template: dict[str, Any]  # the recipe with holes, folders absolute
    suite: Suite
    stage: Stage | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def where(self) -> str:
        """The prefix of errors about the recipe: `night.yaml: recipe`."""
        return self.at("recipe")

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Reference → recipe, of those that are known by name alone; see `Stage`."""
        return self.stage.recipes if self.stage else {}

    @property
    def baselines(self) -> BaselinesConfig:
        """The spec's `baselines`, folders absolute."""
        config = self.config.baselines
        found = anchor({"base_model": config.base_model, "models": config.models}, self.file.parent)
        models = None if config.models is None else tuple(found["models"])
        return config.model_copy(update={"base_model": found["base_model"], "models": models})

    def at(self, key: str) -> str:
        """Where a key stands, for errors: `night.yaml: optimizer`, and of a stage `night.yaml: stages[1].optimizer`."""
        own = re.split(r"[.\[]", key, maxsplit=1)[0] in OF_A_STAGE
        return f"{self.file}: {f'stages[{self.stage.index}].' if own and self.stage else ''}{key}"

    def identity(self) -> dict[str, Any]:
        """What makes this search this search, as plain data; recorded, and compared at resume."""
        config = self.config.model_dump(mode="json", exclude={"budget", "workers", "tracking", "ledger"})
        # A search without these keys keeps the id it had before there were such
        for key in ("search_minibatches", "objectives"):
            if config[key] is None:
                del config[key]
        for key in ("base_model", "models"):
            if config["baselines"][key] is None:
                del config["baselines"][key]
        if config["promotion"]["licences"] is None:
            del config["promotion"]["licences"]
        config["optimizer"] = _without_defaults(config["optimizer"])
        chances = {task.name: task.chance for task in self.suite.tasks}
        measure = {"weights": self.suite.weights(), "chances": chances}
        if self.stage is not None and self.stage.winners:
            config["builds_on"] = {name: winner.recipe_id for name, winner in self.stage.winners.items()}
        return config | {"suite": {"name": self.suite.name, "digest": self.suite.digest()} | measure}

    def search_id(self) -> str:
        return digest(self.identity())


def load_spec(path: Path) -> SearchSpec:
    """The search spec of one search from a YAML file; its suite is loaded too. (One of stages: see `staged`.)

    Raises:
        SpecError, RecipeError, SuiteError: the message names the file and the key.
    """
    config = documents.validate(SpecFile, documents.read(path, SpecError), str(path), SpecError)
    for keys, name in stage_references(config.recipe):
        what, allowed = f"got '{STAGE}{name}', and this spec has no stages", "Earlier stages, in a spec of stages"
        raise SpecError(documents.join(f"{path}: recipe", *keys), what, allowed)
    return search_of(path, config, load_suite_of(path, config.suite))


def search_of(path: Path, config: SpecFile, suite: Suite, stage: Stage | None = None) -> SearchSpec:
    """One search of a file, whose suite is loaded.

    Raises:
        SpecError: a task has fewer documents than there are parts to deal them to, or an objective is not known.
    """
    winners = stage.winners if stage else {}
    local = {f"{STAGE}{name}": winner.reference(name) for name, winner in winners.items()}
    spec = SearchSpec(path, config, anchor(config.recipe, path.parent, local), suite, stage)
    _check_minibatches(spec)
    check_objectives(spec)
    return spec


def load_suite_of(path: Path, named: str) -> Suite:
    """The suite that a spec names, relative to its own folder.

    Raises:
        SpecError: there is no such file.
        SuiteError: see `load_suite`.
    """
    suite_path = Path(os.path.expanduser(named))
    suite_path = suite_path if suite_path.is_absolute() else path.parent / suite_path
    if not os.path.isfile(suite_path):
        raise SpecError(f"{path}: suite", f"no file {suite_path}", next="Suites are YAML files, as in evals/")
    return load_suite(suite_path)


def stage_references(node: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every `stage:NAME` in a raw recipe, alone or with an adapter behind it: its keys and the name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from stage_references(value, (*keys, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from stage_references(value, (*keys, index))
    elif isinstance(node, str):
        yield from ((keys, piece.removeprefix(STAGE)) for piece in node.split("+") if piece.startswith(STAGE))


def _check_minibatches(spec: SearchSpec) -> None:
    parts, suite = spec.config.search_minibatches, spec.suite
    fewest = min(suite.tasks, key=lambda task: suite.count(task, "search"))
    count = suite.count(fewest, "search")
    if parts is not None and parts > count:
        what = f"got {parts}, and '{fewest.name}' has {count} documents on search"
        raise SpecError(
            spec.at("search_minibatches"), what, "A document of every task in each part", "Ask for fewer parts"
        )
    optimizer = spec.config.optimizer
    if parts is not None and not load(optimizer.name).minibatches:
        what = f"{optimizer.name} compares candidates one by one, which would answer different questions"
        raise SpecError(spec.at("search_minibatches"), what, next="Leave it out")
    if parts is not None and optimizer.restarts:
        what = f"got {optimizer.restarts} with search_minibatches: a restart's greater generation would lie on several parts"
        raise SpecError(spec.at("optimizer.restarts"), what, "0", "Leave out one of the two")


def is_spec(path: Path) -> bool:
    """Whether a YAML file is a search spec (it has a `recipe`, or `stages`) rather than a recipe."""
    return any({"recipe", "stages"} & data.keys() for data in documents.read_all(path, SpecError))


def is_suite(path: Path) -> bool:
    """Whether a YAML file is a suite (one document, which has `tasks`) rather than a search spec or a recipe."""
    found = documents.read_all(path, SpecError)
    return len(found) == 1 and "tasks" in found[0] and not {"recipe", "merge_method", "models"} & found[0].keys()


def check_same_search(recorded: Mapping[str, Any], spec: SearchSpec, where: str) -> None:
    """Stop a run whose spec is not the one that the ledger of this name records.

    Raises:
        LedgerError: names the first key that differs.
    """
    # Earlier versions kept a default that was written out, and took a `start` beside `warm_start`, which had no effect
    old = flat({**recorded, "optimizer": _without_defaults(recorded["optimizer"])})
    new = flat(spec.identity())
    if "optimizer.warm_start" in old and "optimizer.warm_start" in new:
        del old["optimizer.start"], new["optimizer.start"]
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if not differing:
        return
    key = differing[0]
    raise LedgerError(
        spec.at(key),
        f"this is another search: '{spec.name}' in {where} was started with {_shown(old.get(key))}, "
        f"the file says {_shown(new.get(key))}",
        "Budget, workers, tracking and ledger may change between runs",
        "Undo the change, or give the new search another name",
    )


def _without_defaults(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's keys, but for those of `LATER` that are at their defaults: left out, they would say the same."""
    fields = OptimizerConfig.model_fields
    return {key: value for key, value in optimizer.items() if key not in LATER or value != fields[key].default}


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
