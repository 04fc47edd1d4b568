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
from typing import Annotated, Any, TypeVar

from pydantic import Field, create_model

from evosearch.documents import Document
from evosearch.errors import SpecError
from evosearch.plugins import load_entry_points
from evosearch.search.optimizer import Optimizer
from evosearch.search.space.dimensions import Dimension

ENTRY_POINTS = "evosearch.optimizers"
AUTO = "auto"  # reserved: in a spec, it leaves the choice to `_automatic`


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
    "batch": Option(int, 48, "Documents in a gradient step, equally many of each task.", ge=1),
    "hold_back": Option(
        float,
        0.1,
        "Share of the search split that no gradient sees: models, baselines too, are compared on it alone. Of each "
        "task at least 10 documents, or else none of any; at most 160 in all.",
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

    @cached_property
    def document(self) -> type[Document]:
        """Model of the options, for validation."""
        fields: dict[str, Any] = {
            key: (Annotated[one.kind, Field(gt=one.gt, ge=one.ge, le=one.le, description=one.help)], one.default)
            for key, one in self.options.items()
        }
        return create_model(f"{self.name}_options", __base__=Document, **fields)


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
