"""The search spec as it is used: read once, with its suite, frame and run directory.

`search_id` leaves out budget, workers, tracking and ledger: a search may continue with more time, on other machines, or
with another server.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import SpecError
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.recipe.files import STAGE, anchor
from evosearch.recipe.identity import digest
from evosearch.recipe.run_checkpoints import expand
from evosearch.recipe.schema import Recipe
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers.registry import AUTO
from evosearch.search.optimizers.registry import load as load_optimizer
from evosearch.search.space.routes import is_route
from evosearch.search.space.template import frame
from evosearch.spec.config import BaselinesConfig, SpecFile
from evosearch.spec.objective_check import check_objectives
from evosearch.spec.run_dir import RunDir, configured_run_dir
from evosearch.untrusted import beside

STAGE_KEYS = ("recipe", "optimizer", "budget", "search_minibatches", "objectives")  # each stage has its own
NOT_IN_IDENTITY = {"budget", "workers", "tracking", "ledger"}


@dataclass(frozen=True)
class Winner:
    """The winner of a stage: a recipe, which later stages name as `stage:NAME`.

    Attributes:
        recipe: Plain data; references are absolute, or keys of `recipes`.
        recipe_id: See `recipe.identity`.
        recipes: Reference → recipe, of the nested recipes that it is made of.
        place: A model folder to use in place of the recipe.
    """

    recipe: Mapping[str, Any]
    recipe_id: str
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    place: Path | None = None

    def reference(self, stage: str) -> str:
        """Reference by which recipes of later stages name it."""
        return f"{STAGE}{stage}" if self.place is None else str(self.place)


@dataclass(frozen=True)
class Stage:
    """The place of a search in a multi-stage run.

    Attributes:
        pipeline: Name of the multi-stage spec.
        name: Name of the stage.
        index: Index of the stage.
        last: Whether this stage ends at the gate.
        winners: Stage name → winner, of the earlier stages that this one builds on.
        placebo_of: Name of the search whose placebo this is; empty for any other search.
    """

    pipeline: str
    name: str
    index: int
    last: bool = False
    winners: Mapping[str, Winner] = field(default_factory=dict)
    placebo_of: str = ""

    @property
    def recipes(self) -> dict[str, Mapping[str, Any]]:
        """Reference → recipe, of the winners and of the nested recipes that they are made of."""
        found: dict[str, Mapping[str, Any]] = {}
        for name, winner in self.winners.items():
            found |= {**winner.recipes, winner.reference(name): winner.recipe} if winner.place is None else {}
        return found


@dataclass(frozen=True)
class SearchSpec:
    """The spec of one search, with its suite loaded.

    Attributes:
        template: The recipe with its search parameters; folders are absolute.
        stage: None unless the search is a stage of a multi-stage run, or a placebo.
        placebos: Reference of the real search → reference that replaces it; empty unless this is a placebo.
    """

    file: Path
    config: SpecFile
    template: dict[str, Any]
    suite: Suite
    stage: Stage | None = None
    placebos: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the search in its ledger."""
        return self.config.name

    @property
    def where(self) -> str:
        """The prefix of errors about the recipe: `night.yaml: recipe`."""
        return self.at("recipe")

    @property
    def ends_at_gate(self) -> bool:
        """Whether the search ends at the gate; an earlier stage of a multi-stage run does not."""
        return self.stage is None or self.stage.last

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Reference → recipe, of those that are not read from files; see `Stage.recipes`."""
        return self.stage.recipes if self.stage else {}

    @property
    def warm_stage(self) -> str | None:
        """The earlier stage whose winner this search starts from; None without one."""
        named = self.config.optimizer.warm_start or ""
        return named.removeprefix(STAGE) if named.startswith(STAGE) else None

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives; empty for a search by fitness."""
        return self.config.objectives or ()

    @property
    def objective_count(self) -> int:
        """Number of values that the optimizer is told for each candidate."""
        return len(self.objectives) or 1

    @cached_property
    def run_dir(self) -> RunDir:
        """The run directory; nothing is created."""
        pipeline, stage = (self.stage.pipeline, self.stage.name) if self.stage else (self.name, None)
        return configured_run_dir(pipeline, stage, self.config.ledger, self.config.tracking)

    @cached_property
    def is_route(self) -> bool:
        """Whether candidates are routes rather than merges."""
        return is_route(self.template)

    @cached_property
    def frame(self) -> Recipe:
        """The recipe without its parameters; see `search.space.template.frame`.

        Raises:
            RecipeError: The recipe is not well-formed.
        """
        return frame(self.template, self.where)

    @cached_property
    def baselines(self) -> BaselinesConfig:
        """The spec's `baselines`, with absolute folders; in a placebo, its models are replaced too."""
        config = self.config.baselines
        found = anchor({"base_model": config.base_model, "models": config.models}, self.file.parent)
        models = None if config.models is None else tuple(self.placebos.get(one, one) for one in found["models"])
        return config.model_copy(update={"base_model": found["base_model"], "models": models})

    def at(self, key: str) -> str:
        """File and key for errors: `night.yaml: optimizer`, or `night.yaml: stages[1].optimizer`."""
        own = re.split(r"[.\[]", key, maxsplit=1)[0] in STAGE_KEYS
        within = self.stage is not None and self.stage.placebo_of != self.stage.pipeline  # of a list of stages
        return f"{self.file}: {f'stages[{self.stage.index}].' if own and self.stage and within else ''}{key}"

    def identity(self) -> dict[str, Any]:
        """The identity of the search as plain data: recorded at its start, and compared on resume.

        Keys at their defaults are left out, so that a new key with a default changes no identity.
        """
        config = self.config.model_dump(mode="json", exclude=NOT_IN_IDENTITY, exclude_defaults=True)
        chances = {task.name: task.chance for task in self.suite.tasks}
        suite = {"name": self.suite.name, "digest": self.suite.digest()}
        config["suite"] = suite | {"weights": self.suite.weights(), "chances": chances}
        if self.stage is not None and self.stage.winners:
            config["builds_on"] = {name: winner.recipe_id for name, winner in self.stage.winners.items()}
        return config | ({"placebo": True} if self.placebos else {})

    def search_id(self) -> str:
        """Digest of the identity."""
        return digest(self.identity())


def load_spec(path: Path) -> SearchSpec:
    """Read the spec of one search, with its suite. For multi-stage specs see `stages.load`.

    Raises:
        SpecError, RecipeError, SuiteError: The message names the file and the key.
    """
    return parse_search(path, documents.read(path, SpecError))


def parse_search(path: Path, data: Mapping[str, Any]) -> SearchSpec:
    """The spec of one search, whose file's YAML is `data`; see `load_spec`."""
    config = documents.validate(SpecFile, data, str(path), SpecError)
    for keys, name in references_of(config.recipe, config.optimizer):
        what = f"got '{STAGE}{name}', and this spec has no stages"
        place = documents.join(f"{path}: {keys[0]}", *keys[1:])
        raise SpecError(place, what, "Only in the stages of a multi-stage spec")
    return search_of(path, config, load_suite_of(path, config.suite))


def search_of(path: Path, config: SpecFile, suite: Suite, stage: Stage | None = None) -> SearchSpec:
    """The search of a validated config.

    Raises:
        SpecError: A task has fewer documents than minibatches, or an objective is unknown.
    """
    winners = stage.winners if stage else {}
    local = {f"{STAGE}{name}": winner.reference(name) for name, winner in winners.items()}
    recipe = expand(config.recipe, path.parent, f"{path}: recipe")
    spec = SearchSpec(path, config, anchor(recipe, path.parent, local, f"{path}: recipe"), suite, stage)
    _check_minibatches(spec)
    check_objectives(spec.objectives, suite, spec.is_route, spec.at("objectives"))
    return spec


def load_suite_of(path: Path, named: str) -> Suite:
    """Read the suite that the spec at `path` names; a relative path starts at the spec's own folder.

    Raises:
        SpecError: There is no such file, or it is a link out of the folder; see `beside`.
        SuiteError: See `load_suite`.
    """
    suite_path = beside(named, path.parent, SpecError)
    if not os.path.isfile(suite_path):
        raise SpecError(f"{path}: suite", f"no file {suite_path}", next="Suites are YAML files, as in evals/")
    return load_suite(suite_path)


def references_of(recipe: Mapping[str, Any], optimizer: OptimizerConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every `stage:NAME` in a recipe or in a warm start: its keys in the spec and the stage's name."""
    yield from ((("recipe", *keys), name) for keys, name in stage_references(recipe))
    yield from stage_references({"optimizer": {"warm_start": optimizer.warm_start}})


def stage_references(node: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every `stage:NAME` in a raw recipe, with or without an adapter: its keys and the stage's name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from stage_references(value, (*keys, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from stage_references(value, (*keys, index))
    elif isinstance(node, str):
        yield from ((keys, piece.removeprefix(STAGE)) for piece in node.split("+") if piece.startswith(STAGE))


def _check_minibatches(spec: SearchSpec) -> None:
    minibatches, suite, optimizer = spec.config.search_minibatches, spec.suite, spec.config.optimizer
    if minibatches is None:
        return
    where = spec.at("search_minibatches")
    smallest = min(suite.tasks, key=lambda task: suite.count(task, "search"))
    count = suite.count(smallest, "search")
    if minibatches > count:
        what = f"got {minibatches}, and '{smallest.name}' has {count} search documents"
        raise SpecError(where, what, f"At most {count}: each minibatch has documents of every task", "Use fewer")
    if optimizer.name == AUTO:
        return
    if load_optimizer(optimizer.name).gradients:
        what = f"{optimizer.name} divides the search split by its own options, batch and hold_back"
        raise SpecError(where, what, next="Remove it")
    if not load_optimizer(optimizer.name).minibatches:
        what = f"{optimizer.name} compares single candidates, whose scores on different minibatches are not comparable"
        raise SpecError(where, what, next="Remove it")
    if restarts := optimizer.options.get("restarts"):
        what = f"got {restarts} with search_minibatches: a larger generation would span several minibatches"
        raise SpecError(spec.at("optimizer.restarts"), what, "0", "Remove one of the two")
