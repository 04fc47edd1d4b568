"""A spec of stages: several searches in one file, each of which may build on what an earlier one found.

In a later stage's recipe `stage:NAME` stands for the winner of an earlier one. Every stage is a search of its own,
`<name>.<stage>`, with its own recipe, optimizer and budget; suite, workers, tracking, ledger and promotion are of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import SpecError, did_you_mean
from evosearch.evaluation.suites.suite import Suite
from evosearch.recipe.files import STAGE
from evosearch.search.optimizers.registry import OptimizerConfig
from evosearch.search.space.template import frame
from evosearch.spec import spec as one
from evosearch.spec.credentials import Url
from evosearch.spec.spec import OF_A_STAGE, SearchSpec, SpecFile, Stage, Winner, stage_references

LONGEST = 64  # characters of `<name>.<stage>`, as of any search's name


class StageConfig(Document):
    """One stage: what is searched, how, and for how long."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
    recipe: dict[str, Any]
    optimizer: OptimizerConfig
    budget: one.BudgetConfig
    search_minibatches: one.SearchMinibatches | None = None
    objectives: one.Objectives | None = None


class StagesFile(Document):
    """A spec of stages as it is written."""

    name: one.Name
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=2)]
    suite: str
    workers: one.WorkersConfig = one.WorkersConfig()
    tracking: one.TrackingConfig = one.TrackingConfig()
    ledger: Url | None = None
    baselines: one.BaselinesConfig = one.BaselinesConfig()
    promotion: one.PromotionConfig = one.PromotionConfig()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Names are unique, and a stage builds on earlier ones; what none builds on would be searched for nothing."""
        earlier: list[str] = []
        used: set[str] = set()
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}]"
            if stage.name in earlier:
                raise SpecError(f"{where}.name", f"'{stage.name}' is the name of an earlier stage", "Names are unique")
            if len(f"{self.name}.{stage.name}") > LONGEST:
                what = f"the search's name '{self.name}.{stage.name}' is longer than {LONGEST} characters"
                raise SpecError(f"{where}.name", what, next="Choose a shorter name")
            for keys, name in stage_references(stage.recipe):
                if name not in earlier:
                    known = ", ".join(f"{STAGE}{other}" for other in earlier) or "none, this is the first stage"
                    what = f"got '{STAGE}{name}', and no earlier stage is named '{name}'"
                    place = documents.join(f"{where}.recipe", *keys)
                    raise SpecError(place, what, f"Earlier stages: {known}", did_you_mean(name, earlier))
                used.add(name)
            earlier.append(stage.name)
        for index, name in enumerate(earlier[:-1]):
            if name not in used:
                what = f"no later stage builds on '{name}'"
                raise SpecError(f"stages[{index}].name", what, f"'{STAGE}{name}' as a model of one", "Or remove it")
        return self


@dataclass(frozen=True)
class StagedSpec:
    """A spec of stages that was read, with its suite loaded."""

    file: Path
    config: StagesFile
    suite: Suite

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def count(self) -> int:
        return len(self.config.stages)

    def stage(self, index: int, winners: Mapping[str, Winner]) -> SearchSpec:
        """The search of one stage.

        Args:
            winners: of all earlier stages; those that it does not name are left out.

        Raises:
            SpecError, RecipeError: see `load_spec`.
        """
        found = self.config.stages[index]
        named = dict.fromkeys(name for _, name in stage_references(found.recipe))
        last = index == self.count - 1
        stage = Stage(self.name, found.name, index, last, {name: winners[name] for name in named})
        own = {key: getattr(found, key) for key in OF_A_STAGE if key in found.model_fields_set}
        shared = {key: getattr(self.config, key) for key in self.config.model_fields_set - {"name", "stages"}}
        if last:
            shared["baselines"] = self._baselines()
        config = SpecFile(name=self.search_name(index), **own, **shared)
        return one.search_of(self.file, config, self.suite, stage)

    def search_name(self, index: int) -> str:
        return f"{self.name}.{self.config.stages[index].name}"

    def _baselines(self) -> one.BaselinesConfig:
        """The last stage is held against what the first was made of, too, where the spec does not say against what."""
        given, first = self.config.baselines, self.config.stages[0].recipe
        origin = frame(first, f"{self.file}: stages[0].recipe")
        if origin.vocabulary is not None:  # models in the vocabularies they came with do not fit beside its winner
            return given
        own = {"base_model": given.base_model or origin.base_model, "models": given.models or origin.parents}
        return given.model_copy(update=own)


def load(path: Path) -> SearchSpec | StagedSpec:
    """A search spec from a YAML file, of one search or of stages; its suite is loaded too.

    Raises:
        SpecError, RecipeError, SuiteError: the message names the file and the key.
    """
    data = documents.read(path, SpecError)
    if "stages" not in data:
        return one.load_spec(path)
    beside = next((key for key in OF_A_STAGE if key in data), None)
    if beside is not None:
        allowed = f"Each stage has its own {', '.join(StageConfig.model_fields)}"
        raise SpecError(f"{path}: {beside}", "stands beside stages", allowed, "Move it into a stage, or drop stages")
    config = documents.validate(StagesFile, data, str(path), SpecError)
    return StagedSpec(path, config, one.load_suite_of(path, config.suite))
