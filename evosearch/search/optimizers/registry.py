"""Registry of optimizers.

A built-in optimizer is one file in this folder, named as it is called in a spec; its `@optimizer` decorator is the only
line that registers it. Only the file of the chosen optimizer is imported, so that a search does not wait for the
libraries of the others. Other packages add optimizers with an entry point of the group `evosearch.optimizers`, whose
value is a decorated class or a module that contains some:

    [project.entry-points."evosearch.optimizers"]
    my_optimizer = "my_package.my_module"
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema

from evosearch.documents import Document, join, validate
from evosearch.errors import SpecError, did_you_mean
from evosearch.plugins import load_entry_points
from evosearch.search.space.dimensions import Dimension, Evaluation, Genome, Observation

ENTRY_POINTS = "evosearch.optimizers"
AUTO = "auto"  # name in a spec that leaves the choice to `automatic`


class Optimizer(Protocol):
    """Proposes genomes and learns from their results.

    Deterministic in (seed, history of asks and tells), with a random generator of its own. `ask(n)` returns what `n`
    single asks would return, so that a search can be replayed in any portions. An optimizer in asynchronous mode can be
    asked at any time and told of any pending genomes in any order.
    """

    @property
    def population(self) -> int:
        """Number of candidates to propose together next: a generation, or the rest of one that a budget cut short."""

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` genomes, within bounds; they are pending until told."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn from the results of pending genomes, in ask order.

        A genome that keeps its constraints (`Observation.violation` is 0) is better than any that breaks one; of two
        that break some, the one with the smaller violation is better; a failure is worse than all others (Deb 2000,
        doi:10.1016/S0045-7825(99)00389-8).
        """

    def stop_reason(self) -> str | None:
        """Return why more candidates would be useless, or None."""


@runtime_checkable
class Recommends(Protocol):
    """An optimizer that recommends genomes at the end of a search, such as the mean of its distribution."""

    def answers(self) -> list[Genome]:
        """Return the recommended genomes, within bounds; they are scored on the full search split, and never told."""


@runtime_checkable
class AsksForGradients(Protocol):
    """An optimizer that is registered with `gradients`, and decides how each of its candidates is evaluated."""

    def evaluation(self, index: int) -> Evaluation:
        """Return how the candidate with an ask index (from 0) is evaluated; depends on nothing else.

        A gradient is asked for on shard s of minibatch i, which has index i · population + s. With a held-back part,
        index minibatches · population is that part, on which candidates are scored.
        """


@dataclass(frozen=True)
class Problem:
    """The problem that an optimizer is built for.

    Attributes:
        dimensions: The search space.
        start: Genome on which a distribution is centred, or which an optimizer without one proposes first.
        population: Number of candidates that are proposed together.
        seed: Seed of the optimizer's random generator.
        asynchronous: The optimizer is asked and told at any time, instead of generation by generation.
        objectives: Number of values of an observation.
        known: Results of another search in this space's dimensions, best first, for optimizers that learn from single
            trials. They were never proposed here and are not counted.
        minibatches: For gradients: number of minibatches of the search split, each of which has `population` shards.
        held_back: For gradients: whether a part of the search split is in no minibatch.
    """

    dimensions: tuple[Dimension, ...]
    start: Genome
    population: int
    seed: int = 0
    asynchronous: bool = False
    objectives: int = 1
    known: tuple[Observation, ...] = ()
    minibatches: int = 1
    held_back: bool = False


@dataclass(frozen=True)
class Option:
    """An option of one optimizer: a key below the spec's `optimizer`."""

    kind: type[bool] | type[int] | type[float]
    default: bool | int | float
    help: str  # one sentence, for the reference
    gt: float | None = None
    ge: float | None = None
    le: float | None = None

    @property
    def values(self) -> str:
        """The allowed values in words: `number above 0, at most 1`."""
        if self.kind is bool:
            return "true or false"
        bounds = [("above", self.gt), ("at least", self.ge), ("at most", self.le)]
        texts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        return f"{'whole number' if self.kind is int else 'number'} {', '.join(texts)}".strip()


# Options of every optimizer that asks for gradients: how the search split is divided, see `gradient_steps`
DIVISION: Mapping[str, Option] = {
    "batch": Option(int, 12, "Documents of each task in a gradient step.", ge=1),
    "hold_back": Option(
        float,
        0.1,
        "Share of the search split that no gradient sees, for early stopping and selection; of each task at least 10 "
        "documents, or else none of any, and at most 40.",
        ge=0,
        le=0.5,
    ),
}
Factory = Callable[..., Optimizer]  # (problem, **options) → optimizer
T = TypeVar("T", bound=Factory)


@dataclass(frozen=True)
class Entry:
    """An optimizer as its file declares it; see `optimizer`."""

    name: str
    factory: Factory
    default_population: int | Callable[[Sequence[Dimension]], int]
    options: Mapping[str, Option] = field(default_factory=dict)
    categoricals: bool = False
    least_population: int = 1
    asynchronous: bool = False
    objectives: bool = False
    minibatches: bool = True
    gradients: bool = False
    fits: Callable[..., None] | None = None

    def population(self, config: "OptimizerConfig", dimensions: Sequence[Dimension]) -> int:
        """Return the number of candidates that are proposed together at first."""
        default = self.default_population
        return config.population or (default if isinstance(default, int) else default(dimensions))

    def check(
        self,
        config: "OptimizerConfig",
        dimensions: Sequence[Dimension],
        objectives: int = 1,
        where: str = "optimizer",
    ) -> None:
        """Check that the optimizer takes a search space, without building it.

        Args:
            config: Validated configuration.
            dimensions: The search space.
            objectives: Number of objectives.
            where: Prefix of the key in an error, such as `night.yaml: optimizer`.

        Raises:
            SpecError: It does not support categorical dimensions or several objectives, or `fits` rejects the
                dimensions.
        """
        categorical = [dimension.name for dimension in dimensions if dimension.kind == "categorical"]
        if categorical and not self.categoricals:
            have = "have" if len(categorical) > 1 else "has"
            what = f"{self.name} takes only numbers, but {_listed(categorical)} {have} choices"
            raise SpecError(join(where, "name"), what, f"Use one of: {_with('categoricals')}")
        if objectives > 1 and not self.objectives:
            what = f"{self.name} takes one objective, but the spec has {objectives}"
            raise SpecError(join(where, "name"), what, f"Use one of: {_with('objectives')}")
        if self.fits is not None:
            try:
                self.fits(dimensions, **self.own(config))
            except SpecError as error:
                raise SpecError(join(where, error.where), error.what, error.allowed, error.next) from None

    def own(self, config: "OptimizerConfig") -> dict[str, Any]:
        """Return the options that the optimizer itself takes."""
        given = config.options
        return {key: value for key, value in given.items() if not (self.gradients and key in DIVISION)}

    @cached_property
    def document(self) -> type[Document]:
        """Model of the options, for validation."""
        fields: dict[str, Any] = {
            key: (Annotated[one.kind, Field(gt=one.gt, ge=one.ge, le=one.le, description=one.help)], one.default)
            for key, one in self.options.items()
        }
        return create_model(f"{self.name}_options", __base__=Document, **fields)


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
        for key in data:
            if key not in known_keys:
                what, keys = f"{name} has no option '{key}'", f"Known keys here: {', '.join(known_keys)}"
                near = did_you_mean(str(key), known_keys)
                raise SpecError(str(key), what, keys, near or _owners(str(key), name) or "Remove it")
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


def _owners(key: str, name: str) -> str | None:
    """Return which optimizers to name in place of `auto`, if some have the option."""
    owners = [other for other in names() if key in load(other).options] if name == AUTO else []
    return f"Set name: {', '.join(owners[:-1])}{' or ' if owners[1:] else ''}{owners[-1]}" if owners else None


def _options(name: str) -> Mapping[str, Option]:
    return {} if name == AUTO else load(name).options


_entries: dict[str, Entry] = {}


def optimizer(
    name: str,
    *,
    population: int | Callable[[Sequence[Dimension]], int],
    options: Mapping[str, Option] | None = None,
    categoricals: bool = False,
    least_population: int = 1,
    asynchronous: bool = False,
    objectives: bool = False,
    minibatches: bool = True,
    gradients: bool = False,
    fits: Callable[..., None] | None = None,
) -> Callable[[T], T]:
    """Register a class whose constructor takes a `Problem`, and its options as keyword arguments.

    Args:
        name: Name in a spec. That of a built-in optimizer is the name of its file.
        population: Default number of candidates that are proposed together, or a function of the dimensions.
        options: Keys of the spec's `optimizer` that only this optimizer takes.
        categoricals: It supports dimensions with choices.
        least_population: Smallest population that it works with.
        asynchronous: It supports `ask` while results are pending, and `tell` in any order.
        objectives: It supports several objectives.
        minibatches: Candidates of different generations may be scored on different minibatches.
        gradients: It asks for gradients (`AsksForGradients`), of one objective in numbers. It has its own minibatches,
            which the options in `DIVISION` describe; they are added to its `options`, and not given to the class.
        fits: Function (dimensions, **options) that raises a SpecError for a search space it cannot handle; the error
            names the key below `optimizer`.

    Raises:
        ValueError: An optimizer of that name is already registered.
    """

    def register(factory: T) -> T:
        own = factory.__module__.startswith(f"{__package__}.")
        assert not own or factory.__module__ == f"{__package__}.{name}", f"optimizer {name} belongs in {name}.py"
        if name == AUTO or name in _entries or (not own and name in _built_in()):
            raise ValueError(f"an optimizer named '{name}' is already registered")
        _entries[name] = Entry(
            name=name,
            factory=factory,
            default_population=population,
            options=dict(options or {}) | (dict(DIVISION) if gradients else {}),
            categoricals=categoricals,
            least_population=least_population,
            asynchronous=asynchronous,
            objectives=objectives,
            minibatches=minibatches and not gradients,
            gradients=gradients,
            fits=fits,
        )
        return factory

    return register


def names() -> tuple[str, ...]:
    """Return the name of every optimizer in alphabetical order; the files of built-in ones are not imported.

    Raises:
        SpecError: A third-party optimizer cannot be loaded.
    """
    return tuple(sorted({*_built_in(), *_third_party()}))


def load(name: str) -> Entry:
    """Return the entry of a known optimizer and import its file."""
    if name not in _entries:
        import_module(f"{__package__}.{name}")
    return _entries[name]


@cache
def _built_in() -> tuple[str, ...]:
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(name for name in found if name != "registry" and not name.startswith("_"))


@cache
def _third_party() -> tuple[str, ...]:
    found: list[str] = []
    for source, loaded in load_entry_points(ENTRY_POINTS, SpecError):
        own = [name for name, entry in _entries.items() if _belongs(entry.factory, loaded)]
        if not own:
            what = "registers no optimizer"
            raise SpecError(source, what, next="Decorate a class of this module with @optimizer")
        found += own
    return tuple(found)


def _belongs(factory: Factory, loaded: object) -> bool:
    """Return whether a registered class is, or is from the module, that an entry point names."""
    if isinstance(loaded, ModuleType):
        return f"{factory.__module__}.".startswith(f"{loaded.__name__}.")
    return factory is loaded


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
        SpecError: See `Entry.check`.
    """
    assert config.name != AUTO, "auto is chosen before an optimizer is built"
    entry = load(config.name)
    entry.check(config, dimensions, objectives, where)
    assert_in(dimensions, start)
    problem = Problem(
        dimensions=tuple(dimensions),
        start=start,
        population=entry.population(config, dimensions),
        seed=config.seed,
        asynchronous=config.asynchronous,
        objectives=objectives,
        known=tuple(known),
        minibatches=minibatches,
        held_back=held_back,
    )
    return entry.factory(problem, **entry.own(config))


def assert_in(dimensions: Sequence[Dimension], genome: Mapping[str, object]) -> None:
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
