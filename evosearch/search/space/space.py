"""The search space of a recipe with holes: dimensions, and the recipe of each genome.

`outline` finds the holes of a recipe, `routes` those of a search over routes, `sources` models of slices.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self

from evosearch.documents import validate
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.checks import check
from evosearch.recipe.dual import Dual
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Scalar
from evosearch.search.space import sources
from evosearch.search.space.depth import Piece, flatten
from evosearch.search.space.dimensions import Dimension, Genome
from evosearch.search.space.inert import effective, reason
from evosearch.search.space.outline import Outline
from evosearch.search.space.routes import ROUTING, Routes, is_route, parse
from evosearch.search.space.sources import SourceSite
from evosearch.search.space.template import METHOD, SEED, Target, at, refuse_misplaced, scopes


@dataclass(frozen=True)
class SearchSpace:
    """Conversion of genomes to recipes, built by `from_template`."""

    dimensions: tuple[Dimension, ...]
    _template: Mapping[str, Any]
    _sites: Mapping[Target, tuple[Piece, ...]]
    _targets: Mapping[str, tuple[Target, ...]]  # dimension → every setting it fills
    _methods: Mapping[str, MethodSpec]
    _where: str
    _routes: Routes | None = None  # of a search over routes, instead of holes in parameters
    _fixed: Mapping[str, Scalar] = field(default_factory=dict)  # numbers of holes that are not searched → their value
    _sources: tuple[SourceSite, ...] = ()  # slices whose model is searched

    @classmethod
    def from_template(
        cls,
        template: Mapping[str, Any],
        shape: ModelShape,
        methods: Mapping[str, MethodSpec],
        where: str = "recipe",
        depths: Mapping[str, int] | None = None,
    ) -> Self:
        """Build the space of a recipe with holes.

        Args:
            template: The recipe as read from YAML, with holes.
            shape: Tensors that the recipe's models share.
            methods: Every known merge method.
            where: Prefix of the key in an error, such as `night.yaml: recipe`.
            depths: Reference → number of layers, for a search over routes; default: that of `shape`.

        Raises:
            RecipeError: A hole is malformed, misplaced or inert; there is no hole; or the filled recipe is invalid.
        """
        if is_route(template):
            refuse_misplaced(template, where)
            return cls._of_routes(template, shape, methods, where, depths or {})
        outline = Outline(dict(template), shape, methods, where)
        outline.build()
        space = cls(
            tuple(outline.dimensions.values()),
            deepcopy(dict(template)),
            outline.sites,
            {name: tuple(targets) for name, targets in outline.targets.items()},
            methods,
            where,
            _sources=outline.sources,
        )
        if not space.dimensions:
            raise RecipeError(
                where,
                "nothing to search: the recipe has no hole",
                "A hole, such as weight: {low: 0.0, high: 1.0}",
                "Add one",
            )
        for genome in space.corners():
            check(space.fill(genome), methods, where)
        return replace(space, dimensions=space._without_inert(shape, outline.chosen, outline.places))

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
        """Return the genome with every dimension at its `init`."""
        return {dimension.name: dimension.init for dimension in self.dimensions}

    def with_weight(self, per_model: Sequence[float] | float) -> Genome:
        """Return the initial genome with every parameter named `weight` set, clipped to its bounds.

        Args:
            per_model: One weight for every parent (`Recipe.parents`: the models that are not the base), or one for all.
                A number that several parents share is set to the mean of their weights. Empty weights change nothing,
                and routes and slices whose model is searched have no weights.
        """
        if self._routes is not None or self._sources or per_model == ():
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

    def without(self, names: Collection[str]) -> Self:
        """Return the space in which some dimensions are fixed at their `init`; they are no dimensions any more."""
        kept = tuple(dimension for dimension in self.dimensions if dimension.name not in names)
        fixed = {dimension.name: dimension.init for dimension in self.dimensions if dimension.name in names}
        return replace(self, dimensions=kept, _fixed={**self._fixed, **fixed})

    @property
    def has_weights(self) -> bool:
        """Whether `with_weight` changes anything, because a parent's weight is searched."""
        return self.with_weight(-1e30) != self.initial() or self.with_weight(1e30) != self.initial()

    def clip(self, genome: Mapping[str, Scalar]) -> Genome:
        """Return the nearest genome of the space, with inactive dimensions at their `init`."""
        clipped = {d.name: d.clip(genome.get(d.name, d.init)) for d in self.dimensions}
        return {d.name: clipped[d.name] if d.active(clipped) else d.init for d in self.dimensions}

    def validate(self, genome: Mapping[str, Scalar]) -> None:
        """Check a genome.

        Raises:
            RecipeError: A dimension is missing or unknown, or a value is out of bounds.
        """
        known = {dimension.name for dimension in self.dimensions}
        for name in genome:
            if name not in known:
                near = did_you_mean(name, sorted(known))
                raise RecipeError(f"genome: {name}", "not a dimension of this search", next=near)
        for dimension in self.dimensions:
            if dimension.name not in genome:
                raise RecipeError(f"genome: {dimension.name}", "missing")
            if not dimension.contains(genome[dimension.name]):
                allowed = dimension.choices or f"[{dimension.low:g}, {dimension.high:g}]"
                raise RecipeError(f"genome: {dimension.name}", f"got {genome[dimension.name]!r}", f"In {allowed}")

    def fill(self, genome: Mapping[str, Scalar]) -> Recipe:
        """Return the recipe of a genome, without parameters that the genome's merge method does not take.

        Raises:
            RecipeError: The genome is not in this space, or the recipe is malformed.
        """
        self.validate(genome)
        if self._routes is not None:
            data = {**self._template, ROUTING: self._routes.fill(genome)}
            return validate(Recipe, data, self._where, RecipeError)
        data = self._with_parameters(genome)
        sources.filled(data, self._sources, {**self._fixed, **genome})
        return validate(Recipe, data, self._where, RecipeError)

    def _with_parameters(self, genome: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return the template with the method and all parameters filled."""
        data = deepcopy(dict(self._template))
        chosen = self._dimension_of(((), METHOD))
        if chosen is not None:
            data[METHOD] = genome[chosen.name]
        if (seed := self._dimension_of(((), SEED))) is not None:
            data[SEED] = genome[seed.name]
            if not self._methods[data[METHOD]].random:
                del data[SEED]
        for (path, parameter), pieces in self._sites.items():
            values = {**self._fixed, **genome}
            at(data, path)["parameters"][parameter] = flatten(piece.entries(values) for piece in pieces)
        if chosen is not None:
            _drop_foreign(data, self._methods[data[METHOD]])
        return data

    def with_derivatives(self, genome: Mapping[str, Scalar]) -> Recipe:
        """Return the recipe of a genome whose numbers know their derivative in the dimensions.

        It is `fill(genome)`, with every number of a float dimension as a `Dual` whose term is {index of the dimension:
        1}. Log-scaled dimensions too are differentiated in their value.

        Raises:
            RecipeError: The genome is not in this space, or the recipe is malformed.
        """
        self.validate(genome)
        dual = dict(genome)
        for index, dimension in enumerate(self.dimensions):
            if dimension.kind == "float":
                dual[dimension.name] = Dual(float(genome[dimension.name]), {index: 1.0})
        return self.fill(dual)

    def not_differentiable(self) -> str | None:
        """Return why a merge has no derivative in some dimension, in words that name the first one; None if it has."""
        if self._routes is not None:
            return "a route has no derivative in its hops"
        method = self._template[METHOD]
        for dimension in self.dimensions:
            if dimension.kind != "float":
                kind = "a choice" if dimension.kind == "categorical" else "a whole number"
                return f"'{dimension.name}' is {kind}, which has no derivative"
            known = self._methods[str(method)].differentiable
            if not known:
                return f"'{dimension.name}': {method} has no derivative"
            for _, parameter in self._targets[dimension.name]:
                if parameter not in known:
                    listed = " and ".join(known)
                    return f"'{dimension.name}': {method} has derivatives in {listed}, not in {parameter}"
        return None

    def _without_inert(
        self, shape: ModelShape, chosen: Sequence[str], places: Mapping[str, str]
    ) -> tuple[Dimension, ...]:
        """Return the dimensions, active only under the methods for which they have an effect.

        Raises:
            RecipeError: A dimension is inert under all of them.
        """
        method, start, found = self._dimension_of(((), METHOD)), self.initial(), []
        used: dict[str, set[str]] = {}
        for name in chosen:
            data = self._with_parameters(start | {method.name: name} if method else start)
            for site in self._sources:  # one slice of its first model, at the key that the template has
                at(data, site.path)["sources"][0][sources.MODEL] = site.hole.choices[0]
            recipe = validate(Recipe, data, self._where, RecipeError)
            used[name] = effective(recipe, self._methods[name], shape, self._sites) | self._choosing_models
            if self._methods[name].random and (seed := self._dimension_of(((), SEED))):
                used[name].add(seed.name)
        for dimension in self.dimensions:
            active = dimension.active_if[1] if dimension.active_if else chosen
            kept = tuple(name for name in active if dimension.name in used[str(name)])
            if dimension is method or kept == active:
                found.append(dimension)
                continue
            if not kept:
                specs = [self._methods[str(name)] for name in active]
                why, next_step = reason(self._template, self._targets[dimension.name][0], specs)
                raise RecipeError(places[dimension.name], f"'{dimension.name}' has no effect: {why}", next=next_step)
            assert method is not None
            found.append(replace(dimension, active_if=(method.name, kept)))
        return tuple(found)

    @property
    def _choosing_models(self) -> set[str]:
        """Dimensions that choose the model of a slice or of a layer."""
        return {name for site in self._sources for name in site.names}

    def _dimension_of(self, target: Target) -> Dimension | None:
        return next((d for d in self.dimensions if target in self._targets[d.name]), None)

    def _parents(self) -> tuple[str, ...]:
        return self.fill(self.initial()).parents

    def corners(self) -> Iterator[Genome]:
        """Yield genomes that together contain every choice; bounds are checked when a hole is parsed."""
        if self._routes is not None:
            yield from self._routes.corners()
            return
        yield self.initial()
        yield from self._single_models()
        for dimension in self.dimensions:
            if dimension.name in self._choosing_models:
                continue
            for choice in dimension.choices:
                genome = self.initial()
                if dimension.active_if is not None:
                    genome[dimension.active_if[0]] = dimension.active_if[1][0]
                genome[dimension.name] = choice
                yield genome

    def _single_models(self) -> Iterator[Genome]:
        """Yield genomes that together contain every model of every layer: all layers take their nth choice."""
        chosen = [dimension for dimension in self.dimensions if dimension.name in self._choosing_models]
        for index in range(max((len(dimension.choices) for dimension in chosen), default=0)):
            picked = {d.name: d.choices[min(index, len(d.choices) - 1)] for d in chosen}
            yield self.initial() | picked


def _drop_foreign(data: dict[str, Any], method: MethodSpec) -> None:
    """Remove the parameters that the chosen method does not take."""
    for path, parameters in list(scopes(data)):
        kept = {name: v for name, v in parameters.items() if name in method.parameters or name in NO_EFFECT}
        at(data, path)["parameters"] = kept
