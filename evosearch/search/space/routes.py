"""The data-flow space: which layers of which models a token passes, in which order, how strongly (arXiv:2403.13187).

All layers of the models in order, the whole repeated r times, are *slots*; a genome says of each whether its layer is
taken, and by how much its input is scaled. The first `keep_first` slots (layers of the first model) are always taken,
and behind all slots come the last `keep_last` layers of the first model, always taken too:

    A0 | A1 … An B0 … Bm  A0 … An B0 … Bm  … | An        (keep_first: 1, keep_last: 1)

The search starts from the first model's own pass: its layers between the kept ones in the first repeat, scales 1.

Two encodings. `categorical`: a slot's inclusion is one of false and true, and its scale counts only where it is taken.
`threshold`: inclusion is a number, taken above 0.5, as published, so that plain CMA-ES can search it, which cannot be
told that the scale of a slot that is not taken has no effect. In a first draw of either, about two slots are other
than at the start.

The paper's scales belong to pairs of layers that follow each other, W[i, j]. Along one route each such transition is
the input of one hop, so there is one scale a hop, the kept ones included; the first hop follows no layer and has none.
"""

import re
from collections import Counter
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
from evosearch.search.space.types import Dimension, Genome

ROUTING = "routing"
MAX_SLOTS = 10_000  # a space of more is a mistake: a genome has two numbers for each
FLIPS = 2.0  # slots that differ from the start in a first draw, about
STEP = 1.0 / 6.0  # first step size of the published search, as a part of the range; ours is near it, too
THRESHOLD = 0.5  # a slot is taken above it
Positive = Annotated[float, Field(gt=0, strict=True)]


class ScaleHole(Document):
    """Bounds of the scale of a hop's input; 1, which changes nothing, lies between them."""

    low: Positive = 0.5
    high: Positive = 2.0

    @model_validator(mode="after")
    def _around_one(self) -> Self:
        if not self.low < self.high:
            raise RecipeError("low", f"got {self.low:g}", f"Less than high, which is {self.high:g}")
        if not self.low <= 1.0 <= self.high:
            key = "low" if self.low > 1.0 else "high"
            allowed = "low at most 1 and high at least 1: the search starts from the first model's own pass"
            raise RecipeError(key, f"got {getattr(self, key):g}", allowed)
        return self


def _kind(scale: Any) -> str:
    return "bounds" if isinstance(scale, Mapping | ScaleHole) else "number"


Scale = Annotated[Annotated[float, Tag("number")] | Annotated[ScaleHole, Tag("bounds")], Discriminator(_kind)]


class RouteHole(Document):
    """`routing: {search: true, …}` as written.

    `repeats` is how often the layers of all models are gone through. `scale: 1.0` leaves the scales as they are.
    `max_hops` is the most layers of a route (default: twice the first model's): time and memory of a candidate grow
    with it. `max_gain` bounds the product of the scales up to any hop, as in a filled recipe.
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
                next_step = "Raise repeats to pass its layers more often"
                raise RecipeError(f"models[{index}]", f"'{model}' is named twice", "Each model once", next_step)
        if isinstance(self.scale, float) and self.scale != 1.0:
            raise RecipeError("scale", f"got {self.scale:g}", "1.0 (scales are not searched), or {low, high}")
        if isinstance(self.scale, ScaleHole) and self.max_gain == 1.0:
            what = "got 1 with a searched scale, which it would hold at 1"
            raise RecipeError("max_gain", what, "More than 1", "Or leave scales alone: scale: 1.0")
        return self


@dataclass(frozen=True)
class Slot:
    """A layer that a route may pass."""

    key: str  # names its dimensions: `2 sort:5` is layer 5 of the model 'sort' in the second repeat
    model: str
    layer: int
    place: Literal["first", "free", "last"]  # first and last: always taken
    start: bool  # taken in the first model's own pass


@dataclass(frozen=True)
class Routes:
    """A routing hole laid out: its slots, their dimensions, and the route of a genome."""

    hole: RouteHole
    depths: Mapping[str, int]
    where: str  # of the hole, as `night.yaml: recipe.routing`

    @classmethod
    def from_template(cls, template: Mapping[str, Any], depths: Mapping[str, int], where: str) -> Self:
        """Lay out the hole of a template.

        Args:
            depths: reference → number of layers, of every model of the hole.
            where: of the recipe, as `night.yaml: recipe`.

        Raises:
            RecipeError: the hole is not well-formed, asks for layers that are not there, or leaves nothing to search.
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
            what = f"keep_first and keep_last are {kept} layers together, and '{hole.models[0]}' has {depth}"
            raise RecipeError(join(self.where, key), what, "Different layers of the first model", "Keep fewer")
        if len(self._all) > MAX_SLOTS:
            what = f"got {hole.repeats}: {sum(self.depths[m] for m in hole.models)} layers so often are too many slots"
            raise RecipeError(join(self.where, "repeats"), what, f"At most {MAX_SLOTS} slots in all")
        if self.max_hops < depth:
            allowed = f"At least {depth}, the layers of '{hole.models[0]}': the search starts from its own pass"
            raise RecipeError(join(self.where, "max_hops"), f"got {self.max_hops}", allowed)
        if self.max_hops == kept and free:
            what = f"got {self.max_hops}, which the kept layers take up: no other layer could ever be passed"
            raise RecipeError(join(self.where, "max_hops"), what, f"At least {kept + 1}")
        if not self.dimensions:
            what = "nothing to search: all layers are kept, and their scales are 1"
            raise RecipeError(self.where, what, next="Search over scales, raise repeats, or keep fewer layers")

    @property
    def max_hops(self) -> int:
        return self.hole.max_hops or 2 * self.depths[self.hole.models[0]]

    @cached_property
    def _all(self) -> tuple[Slot, ...]:
        """Every slot in the order of a route; more than `MAX_SLOTS` are not listed to their end."""
        hole, first = self.hole, self.hole.models[0]
        own = range(hole.keep_first, self.depths[first] - hole.keep_last)
        labels, slots = _labels(hole.models), list[Slot]()
        for repeat in range(1, hole.repeats + 1):
            for model in hole.models:
                for layer in range(self.depths[model]):
                    once = repeat == 1 and model == first
                    kept = once and layer < hole.keep_first
                    key = f"{repeat} {labels[model]}:{layer}"
                    slots.append(Slot(key, model, layer, "first" if kept else "free", kept or (once and layer in own)))
            if len(slots) > MAX_SLOTS:
                break
        last = range(max(0, self.depths[first] - hole.keep_last), self.depths[first])
        slots += [Slot(f"end {labels[first]}:{layer}", first, layer, "last", True) for layer in last]
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
        """Whether a slot is taken.

        A first draw should differ from the first model's own pass in a few slots: one of many others is gibberish. With
        a threshold, x ~ N(init, STEP²) crosses it with probability p where |init - 0.5| = STEP · Φ⁻¹(1 - p).
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
        """The route of a genome, within `max_hops` and `max_gain`.

        What is too long loses its last free slots; the kept last layers stay. Where a scale would carry the product of
        the scales so far over a bound, it is set to what ends on the bound, and later ones go on from there.
        """
        taken = [slot for slot in self._all if slot.place != "last" and self._takes(slot, genome)]
        last = [slot for slot in self._all if slot.place == "last"]
        hops, divisor = [], 1.0  # C_k
        for slot in taken[: self.max_hops - len(last)] + last:
            scale = float(genome.get(f"scale[{slot.key}]", 1.0))
            bounded = min(max(divisor * scale, 1.0 / self.hole.max_gain), self.hole.max_gain)
            scale = scale if bounded == divisor * scale else bounded / divisor
            hops.append(Hop(model=slot.model, layer=slot.layer, scale=scale))
            divisor *= scale
        return Routing(hops=tuple(hops), max_gain=self.hole.max_gain)

    def _takes(self, slot: Slot, genome: Mapping[str, Scalar]) -> bool:
        if slot.place != "free":
            return True
        value = genome[f"include[{slot.key}]"]
        return bool(value) if self.hole.encoding == "categorical" else float(value) > THRESHOLD

    def corners(self) -> Iterator[Genome]:
        """Genomes that show all that may be wrong with a route: none but the kept slots, every one, extreme scales."""
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
    """Whether a template has a routing hole, well-formed or not."""
    node = template.get(ROUTING)
    return isinstance(node, Mapping) and ("hops" not in node or "search" in node)


def parse(template: Mapping[str, Any], where: str) -> RouteHole:
    """The routing hole of a template.

    Raises:
        RecipeError: it is not well-formed; the message names the key.
    """
    return validate(RouteHole, dict(template[ROUTING]), join(where, ROUTING), RecipeError)


def frame(template: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The template with a route that passes every model of its hole once, the first one first."""
    hops = [{"model": model, "layer": 0} for model in parse(template, where).models]
    return {**template, ROUTING: {"hops": hops}}


def _labels(models: tuple[str, ...]) -> dict[str, str]:
    """A short name for every model: the last part of its reference, numbered where others end alike."""
    short = [_plain(model.rstrip("/").rpartition("/")[2]) for model in models]
    shared = Counter(short)
    return {
        model: name if shared[name] == 1 else f"{name}~{index}"
        for index, (model, name) in enumerate(zip(models, short, strict=True))
    }


def _plain(name: str) -> str:
    """A name in letters, digits and `.-_`, at most 32 of them."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:32]
