"""Finds the holes of a recipe, checks them against the methods' parameters, and names their dimensions.

`holes` defines the form of a hole, `depth` its numbers over the layers, `kinds` its numbers by tensor or module,
`sources` the models of slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evosearch.documents import join
from evosearch.errors import InputError, RecipeError, did_you_mean, in_one
from evosearch.recipe.schema import NO_EFFECT
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, TensorSpec
from evosearch.search.space import holes, sources
from evosearch.search.space.depth import Depth, Numbers, Piece, reached
from evosearch.search.space.dimensions import Dimension
from evosearch.search.space.holes import Hole
from evosearch.search.space.kinds import Kinds
from evosearch.search.space.sources import SourceSite
from evosearch.search.space.template import METHOD, SEED, Path, Target, belongs, is_stacked, refuse_misplaced, scopes

SEEDS = 2**63  # seeds are below it


class Outline:
    """Walks a template once, with parameters sorted by name, so that the order of keys in a file does not matter."""

    def __init__(
        self, template: dict[str, Any], shape: ModelShape, methods: Mapping[str, MethodSpec], where: str
    ) -> None:
        self.template, self.shape, self.methods, self.where = template, shape, methods, where
        self.dimensions: dict[str, Dimension] = {}
        self.sites: dict[Target, tuple[Piece, ...]] = {}
        self.targets: dict[str, list[Target]] = {}
        self.places: dict[str, str] = {}  # dimension → place of its first hole
        self._written: dict[str, tuple[Hole, str]] = {}  # name of a hole → its first occurrence and place
        self.chosen: tuple[str, ...] = ()
        self.sources: tuple[SourceSite, ...] = ()  # slices whose model is searched
        self._stacked = is_stacked(template)

    def build(self) -> None:
        """Find all holes.

        Raises:
            RecipeError: A hole is malformed or misplaced, or a parameter or method is unknown.
            Problems: Several parameters are.
        """
        refuse_misplaced(self.template, self.where)
        self.chosen = self._merge_methods()
        self._seed()
        self.sources = sources.find(self.template, self.where)
        for site in self.sources:
            hole = Hole(choices=tuple(site.labels.values()), init=site.init)
            for key in site.keys:
                self._declare(site.stem, hole, key, (site.path, sources.MODEL), self.chosen, site.where)
        found: list[InputError] = []
        for path, parameters in scopes(self.template):
            for name in sorted(parameters):
                try:
                    self._site((path, name), parameters[name], join(self.where, *path, "parameters", name))
                except InputError as error:
                    found += error.problems
        if found:
            raise in_one(self.where.partition(": ")[0], found)

    def _merge_methods(self) -> tuple[str, ...]:
        """Return the methods that may be chosen, and declare their dimension first if they are a hole."""
        raw, place = self.template.get(METHOD), join(self.where, METHOD)
        if raw is None and "routing" not in self.template:
            raise RecipeError(place, "missing", f"One of: {', '.join(sorted(self.methods))}")
        if raw is None or isinstance(raw, str):
            self._known_method(raw, place)
            return (raw,) if raw else ()
        if not isinstance(raw, Mapping):
            raise RecipeError(place, f"got {raw!r}", "A method, or {choices: [...]}")
        if "choices" not in raw:
            key = next((key for key in raw if key in holes.MARKS), None)
            what = f"got {key}" if key else f"got {dict(raw)!r}"
            raise RecipeError(place, what, "{choices: [...]} with names of methods")
        hole = holes.parse(raw, (), self.shape.num_layers, place)
        chosen = tuple(hole.choices or ())
        for index, name in enumerate(chosen):
            self._known_method(name, join(place, "choices", index))
        self.chosen = chosen
        self._declare(hole.name or METHOD, hole, "", ((), METHOD), chosen, place)
        return chosen

    def _seed(self) -> None:
        """Declare the seed's dimension if it is a hole; it is active under the methods that draw masks."""
        raw, place = self.template.get(SEED), join(self.where, SEED)
        if not isinstance(raw, Mapping):
            return
        if "choices" not in raw:
            raise RecipeError(place, f"got {dict(raw)!r}", "{choices: [...]} with seeds")
        hole = holes.parse(raw, (), self.shape.num_layers, place)
        for index, seed in enumerate(hole.choices or ()):
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
                what = f"got {seed!r}"
                raise RecipeError(join(place, "choices", index), what, "A whole number from 0 to 2^63 - 1")
        drawing = tuple(name for name in self.chosen if self.methods[name].random)
        if not drawing:
            known = ", ".join(name for name, spec in sorted(self.methods.items()) if spec.random)
            what = f"has no effect, so it cannot be searched: {', '.join(self.chosen)} draws no masks"
            raise RecipeError(place, what, f"Methods that draw masks: {known}", "Remove it, or give one seed")
        self._declare(hole.name or SEED, hole, "", ((), SEED), drawing, place)

    def _known_method(self, name: Any, place: str) -> None:
        if name is not None and name not in self.methods:
            known = f"Known methods: {', '.join(sorted(self.methods))}"
            raise RecipeError(place, f"unknown method '{name}'", known, did_you_mean(str(name), self.methods))
        if name is not None and self.methods[name].sequential:
            what = f"{name} cannot be searched: its statistics depend on the weights, so every candidate needs its own"
            allowed = "regmean, whose statistics serve all candidates"
            next = "Search regmean, then merge with the winner's weights; or make the merge a recipe that models name"
            raise RecipeError(place, what, allowed, next)

    def _params(self, name: str, place: str) -> dict[str, Param]:
        """Return the description of a parameter by each method that takes it."""
        taking = {method: self.methods[method].parameters for method in self.chosen}
        found = {method: parameters[name] for method, parameters in taking.items() if name in parameters}
        if not found and name not in NO_EFFECT and self.chosen:
            union = sorted({known for parameters in taking.values() for known in parameters})
            verb = "takes" if len(self.chosen) == 1 else "take"
            listed = f"{', '.join(self.chosen)} {verb} {', '.join(union)}"
            raise RecipeError(place, "unknown parameter", listed, did_you_mean(name, union))
        return found

    def _site(self, target: Target, raw: Any, place: str) -> None:
        params = self._params(target[1], place)
        written = _entries(raw, place)
        if not any(isinstance(value, Mapping) for _, value, _ in written):
            return  # there is no hole
        if not params:
            raise RecipeError(place, "has no effect here, so it cannot be searched", "A fixed value")
        pieces, earlier = [], list[str | None]()
        for pattern, value, where in written:
            if isinstance(value, Mapping):
                pieces.append(self._hole_piece(target, pattern, earlier, value, params, where))
            else:
                pieces.append(Piece(fixed={"filter": pattern, "value": value}))
            earlier.append(pattern)
        self.sites[target] = tuple(pieces)

    def _hole_piece(
        self,
        target: Target,
        pattern: str | None,
        earlier: Sequence[str | None],
        raw: Mapping[str, Any],
        params: Mapping[str, Param],
        where: str,
    ) -> Piece:
        if self._stacked and raw.get("per") is not None:
            allowed = "One number per slice; split a slice to give its layers different numbers"
            raise RecipeError(join(where, "per"), f"'{raw['per']}' counts the layers of a complete model", allowed)
        hole = holes.parse(raw, list(params.values()), self.shape.num_layers, where)
        tensors = self._reached(target[0], pattern, earlier)
        if not tensors:
            what = "this hole has no effect: earlier filters match all tensors"
            if pattern not in (None, "*") and not self._reached(target[0], pattern, ()):
                of = "this slice" if self._reached((), pattern, ()) else "the models"
                what = f"no tensor of {of} has '{pattern}' in its name"
            raise RecipeError(where, what, f"Tensor names such as {self.shape.tensors[-1].name}")
        by_kind = hole.per in ("tensor", "module")
        if hole.per is not None and not by_kind and all(tensor.layer is None for tensor in tensors):
            what = f"'{hole.per}' counts layers, but this hole affects only tensors outside of layers"
            raise RecipeError(join(where, "per"), what, next="Remove it to search one number")
        numbers: Numbers = Depth(hole, self.shape, pattern, tensors)
        if by_kind:
            numbers = Kinds(hole, self.shape, pattern, tensors, tuple(earlier))
        path = join("", *target[0], target[1])
        stem = hole.name or (path if pattern in (None, "*") else f"{path}[{pattern}]")
        methods = tuple(params)
        names = {key: self._declare(stem, hole, key, target, methods, where) for key in numbers.keys}
        return Piece(numbers=numbers, names=names)

    def _reached(self, path: Path, pattern: str | None, earlier: Sequence[str | None]) -> tuple[TensorSpec, ...]:
        """Return the tensors that an entry at `path` affects."""
        found = reached(self.shape, pattern, earlier)
        return tuple(tensor for tensor in found if belongs(self.template, path, tensor))

    def _declare(self, stem: str, hole: Hole, key: str, target: Target, methods: tuple[str, ...], where: str) -> str:
        """Name one number of a hole and add its dimension, or merge it into that of another hole of the same name."""
        name = f"{stem}[{key}]" if key else stem
        self._check_shared(stem, hole, where)
        self.targets.setdefault(name, []).append(target)
        self.places.setdefault(name, where)
        known = self.dimensions.get(name)
        if known is not None:
            before = known.active_if[1] if known.active_if else self.chosen
            methods = tuple(method for method in self.chosen if method in before or method in methods)
        owners = set(self.targets[name])
        dimension = Dimension(
            name,
            "categorical" if hole.choices is not None else "int" if hole.integer else "float",
            known.init if known else hole.start,
            low=hole.low if hole.low is not None else 0.0,
            high=hole.high if hole.high is not None else 1.0,
            log=hole.log,
            choices=hole.choices or (),
            parameter=target[1] if len({parameter for _, parameter in owners}) == 1 else None,
            scope=join("", *target[0]) if len({path for path, _ in owners}) == 1 else None,
        )
        if set(methods) != set(self.chosen):
            method_dimension = next(name for name, targets in self.targets.items() if ((), METHOD) in targets)
            dimension = replace(dimension, active_if=(method_dimension, methods))
        self.dimensions[name] = dimension
        return name

    def _check_shared(self, stem: str, hole: Hole, where: str) -> None:
        first, place = self._written.setdefault(stem, (hole, where))
        if place == where:
            return
        if hole.name is None or first.name is None:
            raise RecipeError(
                join(where, "name"), f"'{stem}' is already the name of the hole at {place}", next="Use another name"
            )
        for key in ("low", "high", "choices", "log", "integer", "per", "groups", "points", "ends", "init"):
            one, other = getattr(first, key), getattr(hole, key)
            if one != other:
                what = f"{other!r} here and {one!r} at {place}"
                raise RecipeError(join(where, key), what, f"Holes named '{stem}' share one value and must be identical")


def _entries(raw: Any, place: str) -> list[tuple[str | None, Any, str]]:
    """Return a setting as (filter, value, where) entries; a value that is a mapping is a hole."""
    if isinstance(raw, Mapping):
        return [_conditional(raw, place)] if _is_conditional(raw) else [(None, raw, place)]
    if not isinstance(raw, list | tuple) or not any(isinstance(item, Mapping) for item in raw):
        return [(None, raw, place)]
    inside = next((index for index, item in enumerate(raw) if holes.is_hole(item)), None)
    if inside is not None:
        next_step = "Write one hole with per: gradient and points, or {filter, value} entries"
        raise RecipeError(join(place, inside), "a hole is not allowed inside a list", next=next_step)
    entries = []
    for index, item in enumerate(raw):
        where = join(place, index)
        if not isinstance(item, Mapping):
            allowed = "Either only numbers (a gradient) or only {filter, value} entries"
            raise RecipeError(where, f"got {item!r}", allowed)
        entries.append(_conditional(item, where))
    return entries


def _is_conditional(node: Mapping[str, Any]) -> bool:
    return bool({"filter", "value"} & node.keys()) and not holes.is_hole(node)


def _conditional(raw: Mapping[str, Any], where: str) -> tuple[str | None, Any, str]:
    for key in raw:
        if key not in ("filter", "value"):
            next_step = did_you_mean(key, ("filter", "value"))
            raise RecipeError(join(where, key), "unknown key", "Known keys here: filter, value", next_step)
    value, pattern = raw.get("value"), raw.get("filter")
    if value is None:
        raise RecipeError(join(where, "value"), "missing", next="Add the value for this filter")
    if pattern is not None and not isinstance(pattern, str):
        raise RecipeError(join(where, "filter"), f"got {pattern!r}", "A substring of tensor names, or '*'")
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        next_step = "Write one hole with per: gradient and points"
        raise RecipeError(join(where, "value"), "a hole is not allowed inside a list", next=next_step)
    return pattern, value, join(where, "value")
