"""A route for mergekit: slices of single runs of layers, passed through, what writes to the residual stream scaled."""

from collections.abc import Iterator, Mapping
from typing import Any

from evosearch.errors import RecipeError
from evosearch.recipe.hops import Routing
from evosearch.recipe.shapes import ModelShape


def in_slices(routing: Routing, shape: ModelShape, names: Mapping[str, str], instead: str) -> dict[str, Any]:
    """The route as a recipe of mergekit's `passthrough`: each weight that mergekit makes is ours but for its last bit.

    Args:
        shape: the layout of the output.
        names: reference → what to write for it.
        instead: what to do where there is no such recipe.

    Raises:
        RecipeError: mergekit would make another model of it.
    """
    _check(routing, shape, instead)
    slices = []
    for first, end in _runs(routing):
        hop, divisor = routing.hops[first], routing.divisors()[first]
        source: dict[str, Any] = {"model": names[hop.model], "layer_range": [hop.layer, hop.layer + end - first]}
        if divisor != 1.0:
            scaled = [{"filter": name, "value": 1.0 / divisor} for name in _writers(shape, range(first, end), instead)]
            source["parameters"] = {"scale": [*scaled, {"value": 1.0}]}
        slices.append({"sources": [source]})
    return {"merge_method": "passthrough", "base_model": names[routing.hops[0].model], "slices": slices}


def _check(routing: Routing, shape: ModelShape, instead: str) -> None:
    first, last = routing.hops[0].model, routing.hops[-1].model
    if last != first:
        where = f"recipe.routing.hops[{len(routing.hops) - 1}].model"
        what = f"mergekit would take final norm and head from '{last}', where a route has those of '{first}'"
        raise RecipeError(where, what, next=instead)
    if shape.writer_offset and any(divisor != 1.0 for divisor in routing.divisors()):
        what = f"mergekit cannot scale the norms of {shape.architecture}, which multiply by 1 + weight"
        raise RecipeError("recipe.routing.hops", what, "Hops without scales", instead)
    if shape.kinds:
        what = f"mergekit would leave config.json as it is, in which {shape.architecture} has a kind for each layer"
        raise RecipeError("recipe.routing.hops", what, next=instead)


def _runs(routing: Routing) -> Iterator[tuple[int, int]]:
    """First hop and end of every run of consecutive layers of one model under one divisor."""
    hops, divisors, first = routing.hops, routing.divisors(), 0
    for k in range(1, len(hops) + 1):
        if (
            k == len(hops)
            or (hops[k].model, hops[k].layer) != (hops[first].model, hops[first].layer + k - first)
            or divisors[k] != divisors[first]
        ):
            yield first, k
            first = k


def _writers(shape: ModelShape, layers: range, instead: str) -> list[str]:
    """What in a tensor's name says that it writes to the residual stream in these layers, as `self_attn.o_proj`."""
    inside = [tensor for tensor in shape.tensors if tensor.layer in layers]
    found: dict[str, None] = {}
    for tensor in inside:
        if tensor.writes_residual:
            name = tensor.name.partition(f".{tensor.layer}.")[2]
            found[name.rpartition(".")[0]] = None
    for tensor in inside:
        if not tensor.writes_residual and any(name in tensor.name for name in found):
            what = f"no filter of mergekit's tells '{tensor.name}' from what writes to the residual stream"
            raise RecipeError("recipe.routing.hops", what, next=instead)
    return list(found)
