"""Access to a template: a recipe with holes as raw data."""

from collections.abc import Iterator, Mapping
from typing import Any

from evosearch.documents import join, validate, validate_all
from evosearch.errors import RecipeError
from evosearch.recipe.checks import check_route_keys
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place, TensorSpec
from evosearch.search.space import holes, routes, sources

METHOD, SEED = "merge_method", "seed"
OF_MERGES = (METHOD, "models", "slices", "modules", "parameters")
HOLES = "Holes are allowed as values of parameters, as merge_method, as seed, as a slice's model, and as routing"
ROUTE_HOLES = "In a search over routes only routing is a hole"
Path = tuple[str | int, ...]  # keys of a scope in the recipe: () for its own parameters, ("models", 1)
Target = tuple[Path, str]  # scope, parameter


def refuse_misplaced(template: Mapping[str, Any], where: str) -> None:
    """Check that holes are only values of parameters, the merge method, models of slices, or the route.

    Raises:
        RecipeError: A hole is somewhere else.
    """
    route = routes.is_route(template)
    for key, value in template.items():
        place = join(where, key)
        if key in OF_MERGES and route:
            what, next_step = "not valid in a search over routes", "Remove it, or remove routing"
            raise RecipeError(place, what, "A recipe is either a merge or a route", next_step)
        if key == routes.ROUTING if route else key in (METHOD, SEED, "parameters"):
            continue
        for found in holes.find(value, place):
            if key in ("slices", "modules") and sources.IN_A_SOURCE.search(found):
                continue  # `sources.find` checks it
            if key not in ("models", "slices", "modules") or ".parameters." not in found.removeprefix(place):
                raise RecipeError(found, "a hole is not allowed here", ROUTE_HOLES if route else HOLES)


def frame(template: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe without parameters: its models, and how their layers are stacked.

    A slice whose model is searched has all of its models. For a search over routes this is a route with one hop per
    model, through their first layers in order.

    Raises:
        RecipeError: A hole is misplaced, or the template is malformed.
    """
    refuse_misplaced(template, where)
    if routes.is_route(template):
        recipe = validate(Recipe, routes.frame(template, where), where, RecipeError)
        check_route_keys(recipe, where)
        return recipe
    bare, searched = without_parameters(template), sources.find(template, where)
    if isinstance(bare.get(METHOD), Mapping) or searched:  # any method with several models will do
        bare[METHOD] = "linear"
    if isinstance(bare.get(SEED), Mapping):
        del bare[SEED]
    for site in searched:
        at(bare, site.path)["sources"] = site.everywhere()
    return validate_all(Recipe, bare, where, RecipeError)


def is_stacked(template: Mapping[str, Any]) -> bool:
    """Return whether the recipe has slices."""
    modules = template.get("modules")
    inner = modules.values() if isinstance(modules, Mapping) else ()
    return any(isinstance(node, Mapping) and "slices" in node for node in (template, *inner))


def belongs(template: Mapping[str, Any], path: Path, tensor: TensorSpec) -> bool:
    """Return whether a parameter in the scope at `path` affects a tensor of the output.

    A slice's parameter affects only its layers; embeddings belong to the first slice, final norm and head to the last.
    """
    if "slices" not in path:
        return True
    index = path.index("slices") + 1
    slices, chosen = at(template, path[:index]), path[index]
    lengths = [one["sources"][0]["layer_range"][1] - one["sources"][0]["layer_range"][0] for one in slices]
    if tensor.layer is None:
        return bool(chosen == (0 if tensor.place is Place.EMBEDDINGS else len(slices) - 1))
    assert isinstance(chosen, int)
    first = sum(lengths[:chosen])
    return bool(first <= tensor.layer < first + lengths[chosen])


def without_parameters(node: Any) -> Any:
    """Return a part of a raw recipe without the parameters of its merge method."""
    if isinstance(node, Mapping):
        return {key: without_parameters(value) for key, value in node.items() if key != "parameters"}
    return [without_parameters(item) for item in node] if isinstance(node, list | tuple) else node


def scopes(node: Any, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield every mapping of parameters, outer ones first; malformed ones are left to the recipe's schema."""
    if isinstance(node, Mapping):
        if isinstance(node.get("parameters"), Mapping):
            yield path, node["parameters"]
        for key, value in node.items():
            if key in ("models", "slices", "sources", "modules") or path == ("modules",):
                yield from scopes(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from scopes(item, (*path, index))


def at(data: Any, path: Path) -> Any:
    """Return the value at a path."""
    for key in path:
        data = data[key]
    return data
