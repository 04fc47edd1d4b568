"""The search space: a recipe with holes. The winner is the same recipe with the holes filled.

What a hole may say is in `holes.py`, and how one is spread over depth in `layout.py`; here they are found in a recipe,
named, and filled.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Self

from evosearch.documents import join, validate
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.checks import check
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Scalar, TensorSpec
from evosearch.search import holes
from evosearch.search.holes import Hole
from evosearch.search.idle import deciding, reason
from evosearch.search.layout import Layout, Piece, flatten, reached
from evosearch.search.routes import ROUTING, Routes, is_route, parse
from evosearch.search.template import METHOD, Path, Target, at, belongs, is_stacked, refuse_misplaced, scopes
from evosearch.search.types import Dimension, Genome


@dataclass(frozen=True)
class SearchSpace:
    """Genome ⇄ recipe. Made by `from_template`."""

    dimensions: tuple[Dimension, ...]
    _template: Mapping[str, Any]
    _sites: Mapping[Target, tuple[Piece, ...]]
    _targets: Mapping[str, tuple[Target, ...]]  # dimension → every setting it fills
    _methods: Mapping[str, MethodSpec]
    _where: str
    _routes: Routes | None = None  # what is searched in place of holes in parameters

    @classmethod
    def from_template(
        cls,
        template: Mapping[str, Any],
        shape: ModelShape,
        methods: Mapping[str, MethodSpec],
        where: str = "recipe",
        depths: Mapping[str, int] | None = None,
    ) -> Self:
        """Lay out the space of a recipe with holes.

        Args:
            template: the recipe as read from YAML, holes and all.
            shape: the layout that the recipe's models share.
            methods: every known merge method.
            where: what to put before a key in an error, as `night.yaml: recipe`.
            depths: reference → number of layers, for a search over routes; of what is not in it, as many as in `shape`.

        Raises:
            RecipeError: a hole is not well-formed, stands where nothing can be searched, or there is none; or the
                recipe is wrong with its holes filled.
        """
        if is_route(template):
            refuse_misplaced(template, where)
            return cls._of_routes(template, shape, methods, where, depths or {})
        builder = _Builder(dict(template), shape, methods, where)
        builder.build()
        space = cls(
            tuple(builder.dimensions.values()),
            deepcopy(dict(template)),
            builder.sites,
            {name: tuple(targets) for name, targets in builder.targets.items()},
            methods,
            where,
        )
        if not space.dimensions:
            raise RecipeError(
                where, "nothing to search: no value is a hole", "A hole, as weight: {low: 0.0, high: 1.0}", "Add one"
            )
        for genome in space.corners():
            check(space.fill(genome), methods, where)
        return replace(space, dimensions=space._not_idle(shape, builder.chosen, builder.places))

    @classmethod
    def _of_routes(
        cls,
        template: Mapping[str, Any],
        shape: ModelShape,
        methods: Mapping[str, MethodSpec],
        where: str,
        depths: Mapping[str, int],
    ) -> Self:
        known = {model: depths.get(model, shape.num_layers) for model in parse(template, where).models}
        routes = Routes.from_template(template, known, where)
        space = cls(routes.dimensions, deepcopy(dict(template)), {}, {}, methods, where, routes)
        for genome in space.corners():
            check(space.fill(genome), methods, where)
        return space

    def initial(self) -> Genome:
        """Every dimension at its `init`."""
        return {dimension.name: dimension.init for dimension in self.dimensions}

    def with_weight(self, per_model: Sequence[float] | float) -> Genome:
        """The initial genome with every number of a parameter named `weight` set, within its bounds; a route has none.

        Args:
            per_model: one weight for every parent (`Recipe.parents`: the models that are not the base), or one for
                all. A number that several parents share takes their mean. No weights leave everything as it is.
        """
        if self._routes is not None or per_model == ():
            return self.initial()
        parents = self._parents()
        weights = [float(per_model)] * len(parents) if isinstance(per_model, int | float) else list(per_model)
        assert len(weights) == len(parents), f"{len(weights)} weights for {len(parents)} parents"
        of_parent = dict(zip(parents, weights, strict=True))
        mean = sum(weights) / len(weights)
        genome = self.initial()
        for dimension in self.dimensions:
            targets = self._targets[dimension.name]
            models = [at(self._template, path).get("model") for path, parameter in targets if parameter == "weight"]
            given = [mean if model is None else of_parent[model] for model in models if model in (None, *of_parent)]
            if given and dimension.kind != "categorical":
                genome[dimension.name] = dimension.clip(sum(given) / len(given))
        return genome

    @property
    def has_weights(self) -> bool:
        """Whether `with_weight` changes anything: a parent's weight is searched."""
        return self.with_weight(-1e30) != self.initial() or self.with_weight(1e30) != self.initial()

    def clip(self, genome: Mapping[str, Scalar]) -> Genome:
        """The nearest genome of the space, inactive dimensions at their `init`."""
        clipped = {d.name: d.clip(genome.get(d.name, d.init)) for d in self.dimensions}
        return {d.name: clipped[d.name] if d.active(clipped) else d.init for d in self.dimensions}

    def validate(self, genome: Mapping[str, Scalar]) -> None:
        """
        Raises:
            RecipeError: the genome lacks a dimension, has one too many, or a value lies outside.
        """
        known = {dimension.name for dimension in self.dimensions}
        for name in genome:
            if name not in known:
                near = did_you_mean(name, sorted(known))
                raise RecipeError(f"genome: {name}", "no dimension of this search", next=near)
        for dimension in self.dimensions:
            if dimension.name not in genome:
                raise RecipeError(f"genome: {dimension.name}", "missing")
            if not dimension.contains(genome[dimension.name]):
                allowed = dimension.choices or f"[{dimension.low:g}, {dimension.high:g}]"
                raise RecipeError(f"genome: {dimension.name}", f"got {genome[dimension.name]!r}", f"In {allowed}")

    def fill(self, genome: Mapping[str, Scalar]) -> Recipe:
        """The recipe of one genome. Parameters that the genome's merge method does not take are left out.

        Raises:
            RecipeError: the genome is not of this space, or the recipe is not well-formed.
        """
        self.validate(genome)
        if self._routes is not None:
            data = {**self._template, ROUTING: self._routes.fill(genome)}
            return validate(Recipe, data, self._where, RecipeError)
        data = deepcopy(dict(self._template))
        chosen = self._dimension_of(((), METHOD))
        if chosen is not None:
            data[METHOD] = genome[chosen.name]
        for (path, parameter), pieces in self._sites.items():
            at(data, path)["parameters"][parameter] = flatten(piece.entries(genome) for piece in pieces)
        if chosen is not None:
            _drop_foreign(data, self._methods[data[METHOD]])
        return validate(Recipe, data, self._where, RecipeError)

    def _not_idle(self, shape: ModelShape, chosen: Sequence[str], places: Mapping[str, str]) -> tuple[Dimension, ...]:
        """The dimensions, each active under those of the chosen methods where it decides something.

        Raises:
            RecipeError: one decides nothing.
        """
        method, start, found = self._dimension_of(((), METHOD)), self.initial(), []
        used: dict[str, set[str]] = {}
        for name in chosen:
            recipe = self.fill(start | {method.name: name} if method else start)
            used[name] = deciding(recipe, self._methods[name], shape, self._sites)
        for dimension in self.dimensions:
            active = dimension.active_if[1] if dimension.active_if else chosen
            kept = tuple(name for name in active if dimension.name in used[str(name)])
            if dimension is method or kept == active:
                found.append(dimension)
                continue
            if not kept:
                specs = [self._methods[str(name)] for name in active]
                why, next_step = reason(self._template, self._targets[dimension.name][0], specs)
                raise RecipeError(places[dimension.name], f"'{dimension.name}' decides nothing: {why}", next=next_step)
            assert method is not None
            found.append(replace(dimension, active_if=(method.name, kept)))
        return tuple(found)

    def _dimension_of(self, target: Target) -> Dimension | None:
        return next((d for d in self.dimensions if target in self._targets[d.name]), None)

    def _parents(self) -> tuple[str, ...]:
        return self.fill(self.initial()).parents

    def corners(self) -> Iterator[Genome]:
        """Genomes that together hold every choice. (Bounds are checked where a hole is read.)"""
        if self._routes is not None:
            yield from self._routes.corners()
            return
        yield self.initial()
        for dimension in self.dimensions:
            for choice in dimension.choices:
                genome = self.initial()
                if dimension.active_if is not None:
                    genome[dimension.active_if[0]] = dimension.active_if[1][0]
                genome[dimension.name] = choice
                yield genome


class _Builder:
    """Walks a template once. Parameters are visited by name, so that the order of keys in a file means nothing."""

    def __init__(
        self, template: dict[str, Any], shape: ModelShape, methods: Mapping[str, MethodSpec], where: str
    ) -> None:
        self.template, self.shape, self.methods, self.where = template, shape, methods, where
        self.dimensions: dict[str, Dimension] = {}
        self.sites: dict[Target, tuple[Piece, ...]] = {}
        self.targets: dict[str, list[Target]] = {}
        self.places: dict[str, str] = {}  # dimension → where its first hole stands
        self._written: dict[str, tuple[Hole, str]] = {}  # first dimension of a hole's name → the hole, and where
        self.chosen: tuple[str, ...] = ()
        self._stacked = is_stacked(template)

    def build(self) -> None:
        refuse_misplaced(self.template, self.where)
        self.chosen = self._merge_methods()
        for path, parameters in scopes(self.template):
            for name in sorted(parameters):
                self._site((path, name), parameters[name], join(self.where, *path, "parameters", name))

    def _merge_methods(self) -> tuple[str, ...]:
        """The methods that may be chosen; where that is a hole, its dimension is the first."""
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
            raise RecipeError(place, what, "{choices: [...]} with the methods to choose from")
        hole = holes.parse(raw, (), self.shape.num_layers, place)
        chosen = tuple(hole.choices or ())
        for index, name in enumerate(chosen):
            self._known_method(name, join(place, "choices", index))
        self.chosen = chosen
        self._declare(hole.name or METHOD, hole, "", ((), METHOD), chosen, place)
        return chosen

    def _known_method(self, name: Any, place: str) -> None:
        if name is not None and name not in self.methods:
            known = f"Known methods: {', '.join(sorted(self.methods))}"
            raise RecipeError(place, f"unknown method '{name}'", known, did_you_mean(str(name), self.methods))

    def _params(self, name: str, place: str) -> dict[str, Param]:
        """What each of the methods says of a parameter; methods that do not take it are left out."""
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
            return  # nothing searched: it stays as it was written
        if not params:
            raise RecipeError(place, "has no effect here, so there is nothing to search", "A fixed value")
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
        hole = holes.parse(raw, list(params.values()), self.shape.num_layers, where)
        if hole.per is not None and self._stacked:
            allowed = "One number here; a slice's own layers differ where they have slices of their own"
            raise RecipeError(join(where, "per"), f"'{hole.per}' counts the layers of a whole model", allowed)
        tensors = self._reached(target[0], pattern, earlier)
        if not tensors:
            what = "this hole decides no tensor: filters before it take them all"
            if pattern not in (None, "*") and not self._reached(target[0], pattern, ()):
                of = "this slice" if self._reached((), pattern, ()) else "the models"
                what = f"no tensor of {of} has '{pattern}' in its name"
            raise RecipeError(where, what, f"Tensor names, as {self.shape.tensors[-1].name}")
        if hole.per is not None and all(tensor.layer is None for tensor in tensors):
            what = f"'{hole.per}' counts layers, and what this hole decides stands outside of them"
            raise RecipeError(join(where, "per"), what, next="Leave it out: one number")
        layout = Layout(hole, self.shape, pattern, tensors)
        path = join("", *target[0], target[1])
        stem = hole.name or (path if pattern in (None, "*") else f"{path}[{pattern}]")
        methods = tuple(params)
        names = {key: self._declare(stem, hole, key, target, methods, where) for key in layout.keys}
        return Piece(layout=layout, names=names)

    def _reached(self, path: Path, pattern: str | None, earlier: Sequence[str | None]) -> tuple[TensorSpec, ...]:
        """The tensors that an entry at `path` decides."""
        found = reached(self.shape, pattern, earlier)
        return tuple(tensor for tensor in found if belongs(self.template, path, tensor))

    def _declare(self, stem: str, hole: Hole, key: str, target: Target, methods: tuple[str, ...], where: str) -> str:
        """Name one number of a hole, and enter it among the dimensions unless another hole of that name has."""
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
                join(where, "name"), f"'{stem}' names another dimension, at {place}", next="Choose another"
            )
        for key in ("low", "high", "choices", "log", "integer", "per", "groups", "points", "ends", "init"):
            one, other = getattr(first, key), getattr(hole, key)
            if one != other:
                what = f"{other!r} here and {one!r} at {place}"
                raise RecipeError(join(where, key), what, f"Holes named '{stem}' share one value, so they are alike")


def _entries(raw: Any, place: str) -> list[tuple[str | None, Any, str]]:
    """A setting as (filter, value, where) entries; a value that is a mapping is a hole."""
    if isinstance(raw, Mapping):
        return [_conditional(raw, place)] if _is_conditional(raw) else [(None, raw, place)]
    if not isinstance(raw, list | tuple) or not any(isinstance(item, Mapping) for item in raw):
        return [(None, raw, place)]
    inside = next((index for index, item in enumerate(raw) if holes.is_hole(item)), None)
    if inside is not None:
        next_step = "Write one hole with per: gradient and points, or {filter, value} entries"
        raise RecipeError(join(place, inside), "a hole cannot stand inside a list", next=next_step)
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
        raise RecipeError(join(where, "value"), "missing", next="Give the value that this filter selects")
    if pattern is not None and not isinstance(pattern, str):
        raise RecipeError(join(where, "filter"), f"got {pattern!r}", "A part of a tensor name, or '*'")
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        next_step = "Write one hole with per: gradient and points"
        raise RecipeError(join(where, "value"), "a hole cannot stand inside a list", next=next_step)
    return pattern, value, join(where, "value")


def _drop_foreign(data: dict[str, Any], method: MethodSpec) -> None:
    """Leave out the parameters that the chosen method does not take: another choice's."""
    for path, parameters in list(scopes(data)):
        kept = {name: v for name, v in parameters.items() if name in method.parameters or name in NO_EFFECT}
        at(data, path)["parameters"] = kept
