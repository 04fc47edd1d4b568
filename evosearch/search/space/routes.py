"""The data-flow space: routes of tokens through layers of several models (Akiba et al. 2024, arXiv:2403.13187).

The layers of all models in order, repeated r times, are *slots*; a genome decides for each slot whether its layer is
included, and the scale of its input. The first `keep_first` slots (layers of the first model) are always included, and
all slots are followed by the last `keep_last` layers of the first model, which are always included too:

    A0 | A1 … An B0 … Bm  A0 … An B0 … Bm  … | An        (keep_first: 1, keep_last: 1)

The search starts from the first model's own pass: its layers between the kept ones in the first repeat, scales 1.

There are two encodings. `categorical`: inclusion is false or true, and the scale of an excluded slot is inactive.
`threshold`: inclusion is a number, included above 0.5, as published, for plain CMA-ES, which does not know that the
scale of an excluded slot has no effect. In either, a first draw differs from the start in about two slots.

The paper's scales belong to pairs of consecutive layers, W[i, j]. Along one route each transition is the input of one
hop, so there is one scale per hop, kept ones included; the first hop follows no layer and has none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from evosearch.documents import Document, join, validate
from evosearch.errors import RecipeError
from evosearch.recipe.hops import MAX_GAIN, Hop, Routing
from evosearch.recipe.schema import Reference
from evosearch.recipe.shapes import Scalar
from evosearch.search.space.dimensions import Dimension, Genome
from evosearch.search.space.labels import labels

ROUTING = "routing"
MAX_SLOTS = 10_000  # more are a mistake: a genome has two numbers for each
FLIPS = 2.0  # number of slots in which a first draw differs from the start, approximately
STEP = 1.0 / 6.0  # first step size of the published search, as a fraction of the range; the default here is close to it
THRESHOLD = 0.5  # a slot is included above it
Positive = Annotated[float, Field(gt=0, strict=True)]


class ScaleHole(Document):
    """Bounds of the scale of a hop's input; they must include 1, which changes nothing."""

    low: Positive = 0.5
    high: Positive = 2.0

    @model_validator(mode="after")
    def _around_one(self) -> Self:
        if not self.low < self.high:
            raise RecipeError("low", f"got {self.low:g}", f"Less than high, which is {self.high:g}")
        if not self.low <= 1.0 <= self.high:
            key = "low" if self.low > 1.0 else "high"
            allowed = "low at most 1 and high at least 1, because the search starts from the first model's own pass"
            raise RecipeError(key, f"got {getattr(self, key):g}", allowed)
        return self


def _kind(scale: Any) -> str:
    return "bounds" if isinstance(scale, Mapping | ScaleHole) else "number"


Scale = Annotated[Annotated[float, Tag("number")] | Annotated[ScaleHole, Tag("bounds")], Discriminator(_kind)]


class RouteHole(Document):
    """`routing: {search: true, …}` as written.

    `repeats` is the number of passes over the layers of all models. `scale: 1.0` fixes the scales. `max_hops` is the
    greatest number of layers of a route (default: twice the first model's); a candidate's time and memory grow with it.
    `max_gain` bounds the product of the scales up to any hop, as in a filled recipe.
    """

    search: Literal[True]
    models: Annotated[tuple[Reference, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1, strict=True)] = 3
    keep_first: Annotated[int, Field(ge=1, strict=True)] = 1
    keep_last: Annotated[int, Field(ge=0, strict=True)] = 1
    scale: Scale = ScaleHole()
    max_hops: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_gain: Annotated[float, Field(ge=1, le=MAX_GAIN, strict=True)] = 8.0
    encoding: Literal["categorical", "threshold"] = "categorical"

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        for index, model in enumerate(self.models):
            if model in self.models[:index]:
                next_step = "Raise repeats to use its layers more often"
                raise RecipeError(f"models[{index}]", f"'{model}' is named twice", "Name each model once", next_step)
        if isinstance(self.scale, float) and self.scale != 1.0:
            raise RecipeError("scale", f"got {self.scale:g}", "1.0 (scales are not searched), or {low, high}")
        if isinstance(self.scale, ScaleHole) and self.max_gain == 1.0:
            what = "got 1 with a searched scale, which would be fixed at 1"
            raise RecipeError("max_gain", what, "More than 1", "Or fix the scales with scale: 1.0")
        return self


@dataclass(frozen=True)
class Slot:
    """A layer that a route may include."""

    key: str  # names its dimensions: `2 sort:5` is layer 5 of the model 'sort' in the second repeat
    model: str
    layer: int
    place: Literal["first", "free", "last"]  # first and last: always included
    start: bool  # included in the first model's own pass


@dataclass(frozen=True)
class Routes:
    """Slots of a routing hole, their dimensions, and the route of a genome."""

    hole: RouteHole
    depths: Mapping[str, int]
    where: str  # place of the hole, such as `night.yaml: recipe.routing`

    @classmethod
    def from_template(cls, template: Mapping[str, Any], depths: Mapping[str, int], where: str) -> Self:
        """Build the slots of a template's hole.

        Args:
            template: The recipe with a routing hole.
            depths: Reference → number of layers, of every model of the hole.
            where: Place of the recipe, such as `night.yaml: recipe`.

        Raises:
            RecipeError: The hole is malformed, refers to layers that do not exist, or leaves nothing to search.
        """
        place = join(where, ROUTING)
        routes = cls(parse(template, where), depths, place)
        routes._check()
        return routes

    def _check(self) -> None:
        hole, depth = self.hole, self.depths[self.hole.models[0]]
        kept, free = hole.keep_first + hole.keep_last, sum(slot.place == "free" for slot in self._all)
        if kept > depth:
            key = "keep_first" if hole.keep_first > depth else "keep_last"
            what = f"keep_first and keep_last keep {kept} layers, but '{hole.models[0]}' has {depth}"
            raise RecipeError(join(self.where, key), what, "Different layers of the first model", "Keep fewer")
        if len(self._all) > MAX_SLOTS:
            what = (
                f"got {hole.repeats}, which gives too many slots with {sum(self.depths[m] for m in hole.models)} layers"
            )
            raise RecipeError(join(self.where, "repeats"), what, f"At most {MAX_SLOTS} slots in total")
        if self.max_hops < depth:
            allowed = f"At least {depth}, because the search starts from the {depth} layers of '{hole.models[0]}'"
            raise RecipeError(join(self.where, "max_hops"), f"got {self.max_hops}", allowed)
        if self.max_hops == kept and free:
            what = f"got {self.max_hops}, which the kept layers use up: no other layer could be included"
            raise RecipeError(join(self.where, "max_hops"), what, f"At least {kept + 1}")
        if not self.dimensions:
            what = "nothing to search: all layers are kept and their scales are fixed"
            raise RecipeError(self.where, what, next="Search the scales, raise repeats, or keep fewer layers")

    @property
    def max_hops(self) -> int:
        """Greatest number of hops of a route."""
        return self.hole.max_hops or 2 * self.depths[self.hole.models[0]]

    @cached_property
    def _all(self) -> tuple[Slot, ...]:
        """Every slot in the order of a route; the list stops soon after `MAX_SLOTS`."""
        hole, first = self.hole, self.hole.models[0]
        own = range(hole.keep_first, self.depths[first] - hole.keep_last)
        short, slots = labels(hole.models), list[Slot]()
        for repeat in range(1, hole.repeats + 1):
            for model in hole.models:
                for layer in range(self.depths[model]):
                    once = repeat == 1 and model == first
                    kept = once and layer < hole.keep_first
                    key = f"{repeat} {short[model]}:{layer}"
                    slots.append(Slot(key, model, layer, "first" if kept else "free", kept or (once and layer in own)))
            if len(slots) > MAX_SLOTS:
                break
        last = range(max(0, self.depths[first] - hole.keep_last), self.depths[first])
        slots += [Slot(f"end {short[first]}:{layer}", first, layer, "last", True) for layer in last]
        return tuple(slots)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Inclusion and scale of every slot, in the order of a route."""
        free = sum(slot.place == "free" for slot in self._all)
        found: list[Dimension] = []
        for index, slot in enumerate(self._all):
            inclusion = None
            if slot.place == "free":
                inclusion = self._inclusion(slot, free)
                found.append(inclusion)
            if index and isinstance(self.hole.scale, ScaleHole):
                found.append(self._scale(slot, self.hole.scale, inclusion))
        return tuple(found)

    def _inclusion(self, slot: Slot, free: int) -> Dimension:
        """Return the dimension that decides whether a slot is included.

        A first draw should differ from the first model's own pass in only a few slots, since models with many other
        layers produce gibberish. x ~ N(init, STEP²) crosses the threshold with probability p if
        |init - 0.5| = STEP · Φ⁻¹(1 - p).
        """
        name = f"include[{slot.key}]"
        if self.hole.encoding == "categorical":
            doubt = min(0.5, FLIPS / free)
            return Dimension(name, "categorical", slot.start, choices=(False, True), parameter="include", doubt=doubt)
        away = STEP * NormalDist().inv_cdf(1.0 - min(0.25, FLIPS / free))
        init = round(min(THRESHOLD + away, 1.0), 3)
        return Dimension(name, "float", init if slot.start else round(1.0 - init, 3), parameter="include")

    def _scale(self, slot: Slot, hole: ScaleHole, inclusion: Dimension | None) -> Dimension:
        active = (inclusion.name, (True,)) if inclusion is not None and inclusion.choices else None
        name = f"scale[{slot.key}]"
        return Dimension(name, "float", 1.0, hole.low, hole.high, log=True, active_if=active, parameter="scale")

    def fill(self, genome: Mapping[str, Scalar]) -> Routing:
        """Return the route of a genome, within `max_hops` and `max_gain`.

        A route that is too long loses its last free slots, and keeps the last layers. A scale that would move the
        product of all scales up to it beyond a bound is changed so that the product equals the bound.
        """
        included = [slot for slot in self._all if slot.place != "last" and self._includes(slot, genome)]
        last = [slot for slot in self._all if slot.place == "last"]
        hops, divisor = [], 1.0  # C_k
        for slot in included[: self.max_hops - len(last)] + last:
            scale = float(genome.get(f"scale[{slot.key}]", 1.0))
            bounded = min(max(divisor * scale, 1.0 / self.hole.max_gain), self.hole.max_gain)
            scale = scale if bounded == divisor * scale else bounded / divisor
            hops.append(Hop(model=slot.model, layer=slot.layer, scale=scale))
            divisor *= scale
        return Routing(hops=tuple(hops), max_gain=self.hole.max_gain)

    def _includes(self, slot: Slot, genome: Mapping[str, Scalar]) -> bool:
        if slot.place != "free":
            return True
        value = genome[f"include[{slot.key}]"]
        return bool(value) if self.hole.encoding == "categorical" else float(value) > THRESHOLD

    def corners(self) -> Iterator[Genome]:
        """Yield genomes that expose every error of a route: only kept slots, all slots, extreme scales."""
        start = {dimension.name: dimension.init for dimension in self.dimensions}
        yield start
        for include, unit in ((False, 0.5), (True, 0.0), (True, 1.0)):
            genome = dict(start)
            for dimension in self.dimensions:
                if dimension.parameter == "include":
                    genome[dimension.name] = include if dimension.choices else float(include)
                else:
                    genome[dimension.name] = dimension.from_unit(unit)
            yield genome


def is_route(template: Mapping[str, Any]) -> bool:
    """Return whether a template has a routing hole, possibly malformed."""
    node = template.get(ROUTING)
    return isinstance(node, Mapping) and ("hops" not in node or "search" in node)


def parse(template: Mapping[str, Any], where: str) -> RouteHole:
    """Parse the routing hole of a template.

    Raises:
        RecipeError: It is malformed; the message names the key.
    """
    return validate(RouteHole, dict(template[ROUTING]), join(where, ROUTING), RecipeError)


def frame(template: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the template with a route of one hop through each model of its hole, in order."""
    hops = [{"model": model, "layer": 0} for model in parse(template, where).models]
    return {**template, ROUTING: {"hops": hops}}
