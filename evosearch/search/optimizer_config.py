"""Configuration of the optimizer in a spec, and construction of the optimizer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from evosearch.documents import Document, join, validate
from evosearch.errors import SpecError, did_you_mean, in_one
from evosearch.search.optimizer import Optimizer, Problem
from evosearch.search.optimizers.registry import AUTO, DIVISION, Option, load, names
from evosearch.search.space.dimensions import Dimension, Genome, Observation


class OptimizerConfig(Document):
    """The optimizer and its options. Options of the chosen optimizer are keys like the others."""

    model_config = ConfigDict(extra="allow")

    name: str = AUTO
    """Name of the optimizer; `auto` chooses one by the search space, the fitness and the objectives."""
    population: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Number of candidates that are proposed together; the default depends on the optimizer."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the optimizer's random generator."""
    start: Literal["init", "best_baseline", "parents"] = "best_baseline"
    """Starting point: the holes' own `init`, or the weights of the best baseline or of the best parent."""
    asynchronous: bool = False
    """Propose a candidate whenever a worker is free, instead of generation by generation."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """Name, folder or spec of another search; its best candidate replaces `start`, and optimizers that learn from
    single trials also learn from its candidates."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        name = data.get("name", AUTO) if isinstance(data, Mapping) else None
        if not isinstance(name, str):
            return data
        known_names = (AUTO, *names())
        if name not in known_names:
            known = ", ".join(known_names)
            raise SpecError("name", f"unknown optimizer '{name}'", f"Known: {known}", did_you_mean(name, known_names))
        known_keys = [*cls.model_fields, *_options(name)]
        keys, found = f"Known keys here: {', '.join(known_keys)}", []
        for key in data:
            if key not in known_keys:
                near = did_you_mean(str(key), known_keys) or _owners(str(key), name) or "Remove it"
                found.append(SpecError(str(key), f"{name} has no option '{key}'", keys, near))
        if found:
            raise in_one("optimizer", found)
        return data

    @model_validator(mode="after")
    def _fit_the_optimizer(self) -> Self:
        if self.warm_start is not None and "start" in self.model_fields_set:
            what = f"got '{self.start}' together with warm_start, which is a starting point too"
            raise SpecError("start", what, next="Remove one of the two")
        if self.name == AUTO:
            return self
        entry, extra = load(self.name), self.__pydantic_extra__ or {}
        given = entry.document.model_validate(extra).model_dump(exclude_defaults=True)
        extra.clear()
        extra.update(given)  # converted, and without defaults, which are not part of a search's identity
        if self.asynchronous and not entry.asynchronous:
            what = f"{self.name} is generational: it does not support asynchronous mode"
            raise SpecError("asynchronous", what, f"Supported by: {_with('asynchronous')}", "Remove it, or use another")
        least = entry.least_population
        if self.population is not None and self.population < least:
            raise SpecError("population", f"got {self.population}", f"{self.name} needs at least {least}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of the chosen optimizer, defaults included."""
        defaults = {key: option.default for key, option in _options(self.name).items()}
        return defaults | (self.__pydantic_extra__ or {})

    def population_for(self, dimensions: Sequence[Dimension]) -> int:
        """Return the number of candidates that the chosen optimizer proposes together at first."""
        default = load(self.name).default_population
        return self.population or (default if isinstance(default, int) else default(dimensions))

    def check(self, dimensions: Sequence[Dimension], objectives: int = 1, where: str = "optimizer") -> None:
        """Check that the chosen optimizer supports a search space, without building it.

        Args:
            dimensions: The search space.
            objectives: Number of objectives.
            where: Prefix of the key in an error, such as `night.yaml: optimizer`.

        Raises:
            SpecError: It does not support categorical dimensions or several objectives, or its `fits` rejects
                the dimensions.
        """
        entry = load(self.name)
        categorical = [dimension.name for dimension in dimensions if dimension.kind == "categorical"]
        if categorical and not entry.categoricals:
            have = "have" if len(categorical) > 1 else "has"
            what = f"{self.name} takes only numbers, but {_listed(categorical)} {have} choices"
            raise SpecError(join(where, "name"), what, f"Use one of: {_with('categoricals')}")
        if objectives > 1 and not entry.objectives:
            what = f"{self.name} takes one objective, but the spec has {objectives}"
            raise SpecError(join(where, "name"), what, f"Use one of: {_with('objectives')}")
        if entry.fits is not None:
            try:
                entry.fits(dimensions, **_own_options(self))
            except SpecError as error:
                raise SpecError(join(where, error.where), error.what, error.allowed, error.next) from None

    def named(self, name: str, options: Mapping[str, Any] | None = None, where: str = "optimizer") -> Self:
        """Return the same configuration with an optimizer and options of it, in place of `auto`.

        Raises:
            SpecError: The optimizer does not support a key of this configuration; `where` is the prefix of the key.
        """
        data = self.model_dump(exclude_unset=True) | {"name": name, **(options or {})}
        return validate(type(self), data, where, SpecError)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the options of every optimizer, so that editors complete them."""
        schema = handler.resolve_ref_schema(handler(core))
        for name in names():
            for key, found in load(name).document.model_json_schema().get("properties", {}).items():
                schema["properties"].setdefault(key, found)
        return schema


def create(
    config: OptimizerConfig,
    dimensions: Sequence[Dimension],
    start: Genome,
    where: str = "optimizer",
    objectives: int = 1,
    known: Sequence[Observation] = (),
    minibatches: int = 1,
    held_back: bool = False,
) -> Optimizer:
    """Build the configured optimizer.

    Args:
        config: Validated configuration.
        dimensions: The search space.
        start: See `Problem`.
        where: Prefix of the key in an error, such as `night.yaml: optimizer`.
        objectives: See `Problem`.
        known: See `Problem`.
        minibatches: See `Problem`.
        held_back: See `Problem`.

    Raises:
        SpecError: See `OptimizerConfig.check`.
    """
    assert config.name != AUTO, "auto is chosen before an optimizer is built"
    config.check(dimensions, objectives, where)
    _assert_in(dimensions, start)
    problem = Problem(
        dimensions=tuple(dimensions),
        start=start,
        population=config.population_for(dimensions),
        seed=config.seed,
        asynchronous=config.asynchronous,
        objectives=objectives,
        known=tuple(known),
        minibatches=minibatches,
        held_back=held_back,
    )
    return load(config.name).factory(problem, **_own_options(config))


def _own_options(config: OptimizerConfig) -> dict[str, Any]:
    """Return the options that the optimizer's class takes."""
    gradients = load(config.name).gradients
    return {key: value for key, value in config.options.items() if not (gradients and key in DIVISION)}


def _owners(key: str, name: str) -> str | None:
    """Return which optimizers to name in place of `auto`, if some have the option."""
    owners = [other for other in names() if key in load(other).options] if name == AUTO else []
    return f"Set name: {', '.join(owners[:-1])}{' or ' if owners[1:] else ''}{owners[-1]}" if owners else None


def _options(name: str) -> Mapping[str, Option]:
    return {} if name == AUTO else load(name).options


def _assert_in(dimensions: Sequence[Dimension], genome: Mapping[str, object]) -> None:
    """Assert that a genome is in the space."""
    assert list(genome) == [dimension.name for dimension in dimensions], "a genome is ordered as the dimensions"
    for dimension in dimensions:
        value = genome[dimension.name]
        assert isinstance(value, float | int | str), f"{dimension.name} = {value!r}"
        assert dimension.contains(value), f"{dimension.name} = {value!r}"


def _with(ability: str) -> str:
    return ", ".join(name for name in names() if getattr(load(name), ability))


def _listed(found: Sequence[str]) -> str:
    return found[0] if len(found) == 1 else f"{', '.join(found[:3])}{' and more' if len(found) > 3 else ''}"
