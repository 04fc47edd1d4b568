"""Multi-stage specs: several searches in one file, each building on the winners of earlier ones.

In the recipe of a later stage, `stage:NAME` refers to the winner of an earlier one. `warm_start: stage:NAME` starts a
stage at that winner, which is then a baseline: so a search of another kind can refine it. Every stage is a search
`<name>.<stage>` with its own recipe, optimizer and budget; suite, workers, tracking, ledger and promotion are shared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import SpecError, did_you_mean
from evosearch.evaluation.suites.suite import Suite
from evosearch.recipe.files import STAGE
from evosearch.recipe.schema import Recipe
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.space.template import frame
from evosearch.spec import config as one
from evosearch.spec.config import SpecFile
from evosearch.spec.credentials import Url
from evosearch.spec.own_names import free_name
from evosearch.spec.run_dir import RunDir, configured_run_dir
from evosearch.spec.spec import (
    STAGE_KEYS,
    SearchSpec,
    Stage,
    Winner,
    load_suite_of,
    parse_search,
    references_of,
    search_of,
)

PLACEBO = "placebo"  # stage of the placebo of a single search; for stages a suffix of their names
LONGEST = 64  # characters of `<name>.<stage>`, as of any search's name


class StageConfig(Document):
    """One stage: a recipe, an optimizer and a budget."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"), AfterValidator(free_name)]
    """Name of the stage; its search is `<name>.<stage>`."""
    recipe: dict[str, Any]
    """A recipe with search parameters; `stage:NAME` as a model is the winner of an earlier stage."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its options."""
    budget: one.BudgetConfig
    """When the stage stops."""
    search_minibatches: one.SearchMinibatches | None = None
    """Number of disjoint minibatches of the search split; see the spec of one search."""
    objectives: one.Objectives | None = None
    """Objectives of a multi-objective stage; see the spec of one search."""


class StagesFile(Document):
    """A search spec of several stages."""

    name: one.SearchName
    """Name of the multi-stage run, of its run directory and of its MLflow experiment."""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=2, max_length=100)]
    """The stages, in order. Each must be used by a later one, except the last."""
    suite: str
    """The evaluation suite, a YAML file; a relative path starts at the spec's own folder."""
    workers: one.WorkersConfig = one.WorkersConfig()
    """The workers that score candidates."""
    tracking: one.TrackingConfig = one.TrackingConfig()
    """Tracking store that mirrors the searches."""
    ledger: Url | None = None
    """Database URL of the ledger, `sqlite:///FILE` or `postgresql://…`; default: a SQLite file in the run directory."""
    baselines: one.BaselinesConfig = one.BaselinesConfig()
    """Models that the winners must beat. The last stage is also compared with the models of the first."""
    promotion: one.PromotionConfig = one.PromotionConfig()
    """How winners are chosen, and how the last one is registered."""

    @model_validator(mode="after")
    def _connected(self) -> Self:
        """Check that names are unique, that stages build on earlier ones, and that each is used."""
        earlier: list[str] = []
        used: set[str] = set()
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}]"
            if stage.name in earlier:
                raise SpecError(f"{where}.name", f"an earlier stage is named '{stage.name}' too", "Unique names")
            if len(f"{self.name}.{stage.name}") > LONGEST:
                what = f"the search's name '{self.name}.{stage.name}' is longer than {LONGEST} characters"
                raise SpecError(f"{where}.name", what, next="Choose a shorter name")
            for keys, name in references_of(stage.recipe, stage.optimizer):
                if name not in earlier:
                    known = ", ".join(f"{STAGE}{other}" for other in earlier) or "none, this is the first stage"
                    what = f"got '{STAGE}{name}', and no earlier stage is named '{name}'"
                    place = documents.join(where, *keys)
                    raise SpecError(place, what, f"Earlier stages: {known}", did_you_mean(name, earlier))
                used.add(name)
            earlier.append(stage.name)
        for index, name in enumerate(earlier):
            if name.rpartition("-")[2] == PLACEBO:
                what = f"got '{name}', which names a placebo"
                raise SpecError(f"stages[{index}].name", what, next="Choose another name")
        for index, name in enumerate(earlier[:-1]):
            if name not in used:
                what = f"no later stage builds on '{name}'"
                allowed = f"'{STAGE}{name}' as a model of a later stage, or as warm_start of its optimizer"
                raise SpecError(f"stages[{index}].name", what, allowed, "Or remove it")
        return self


@dataclass(frozen=True)
class StagedSpec:
    """A multi-stage spec with its suite loaded."""

    file: Path
    config: StagesFile
    suite: Suite

    @property
    def name(self) -> str:
        """Name of the multi-stage run."""
        return self.config.name

    @property
    def count(self) -> int:
        """Number of stages."""
        return len(self.config.stages)

    def stage(self, index: int, winners: Mapping[str, Winner]) -> SearchSpec:
        """The search of one stage.

        Args:
            index: Index of the stage.
            winners: Winners of all earlier stages, by stage name.

        Raises:
            SpecError, RecipeError: See `load`.
        """
        found = self.config.stages[index]
        named = dict.fromkeys(name for _, name in references_of(found.recipe, found.optimizer))
        last = index == self.count - 1
        stage = Stage(self.name, found.name, index, last, {name: winners[name] for name in named})
        own = {key: getattr(found, key) for key in STAGE_KEYS if key in found.model_fields_set}
        shared = {key: getattr(self.config, key) for key in self.config.model_fields_set - {"name", "stages"}}
        if last:
            shared["baselines"] = self._last_baselines()
        config = SpecFile(name=self.search_name(index), **own, **shared)
        return search_of(self.file, config, self.suite, stage)

    def search_name(self, index: int) -> str:
        """Name of a stage's search."""
        return f"{self.name}.{self.config.stages[index].name}"

    def run_dir(self, index: int) -> RunDir:
        """Run directory of a stage; its search need not be ready to run."""
        config = self.config
        return configured_run_dir(self.name, config.stages[index].name, config.ledger, config.tracking)

    def frame(self, index: int) -> Recipe:
        """The recipe of a stage without its parameters, its references as written.

        Raises:
            RecipeError: The recipe is not well-formed.
        """
        return frame(self.config.stages[index].recipe, f"{self.file}: stages[{index}].recipe")

    def _last_baselines(self) -> one.BaselinesConfig:
        """Baselines of the last stage: by default also the models of the first."""
        given, origin = self.config.baselines, self.frame(0)
        if origin.vocabulary is not None:  # these models' own vocabularies differ from the winner's
            return given
        own = {"base_model": given.base_model or origin.base_model, "models": given.models or origin.parents}
        return given.model_copy(update=own)


def load(path: Path) -> SearchSpec | StagedSpec:
    """Read a search spec of one search or of several stages, with its suite.

    Raises:
        SpecError, RecipeError, SuiteError: The message names the file and the key.
    """
    return parse(path, documents.read(path, SpecError))


def parse(path: Path, data: Mapping[str, Any]) -> SearchSpec | StagedSpec:
    """The search spec of a file whose YAML is `data`; see `load`."""
    if "stages" not in data:
        return parse_search(path, data)
    misplaced = next((key for key in STAGE_KEYS if key in data), None)
    if misplaced is not None:
        allowed = f"Each stage has its own {', '.join(StageConfig.model_fields)}"
        raise SpecError(f"{path}: {misplaced}", "belongs in a stage", allowed, "Move it, or remove stages")
    config = documents.validate(StagesFile, data, str(path), SpecError)
    return StagedSpec(path, config, load_suite_of(path, config.suite))
