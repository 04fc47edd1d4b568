"""Routes as mergekit passthrough recipes: slices of layer runs, with scaled residual writers."""

from collections.abc import Iterator, Mapping
from typing import Any

from evosearch.errors import RecipeError
from evosearch.recipe.hops import Routing
from evosearch.recipe.shapes import ModelShape


def in_slices(routing: Routing, shape: ModelShape, names: Mapping[str, str], instead: str) -> dict[str, Any]:
    """Return the route as a `passthrough` recipe of mergekit, whose weights equal ours up to the last bit.

    Args:
        routing: The route.
        shape: Shape of the output.
        names: Reference → name to write.
        instead: Advice for routes that mergekit cannot express.

    Raises:
        RecipeError: mergekit would build a different model.
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
        what = f"mergekit would take final norm and head from '{last}'; a route takes them from '{first}'"
        raise RecipeError(where, what, next=instead)
    if shape.writer_offset and any(divisor != 1.0 for divisor in routing.divisors()):
        what = f"mergekit cannot scale the norms of {shape.architecture}, which multiply by 1 + weight"
        raise RecipeError("recipe.routing.hops", what, "Only hops without scales are supported", instead)
    if shape.kinds:
        what = f"mergekit would not update the layer kinds in config.json, which {shape.architecture} lists per layer"
        raise RecipeError("recipe.routing.hops", what, next=instead)


def _runs(routing: Routing) -> Iterator[tuple[int, int]]:
    """Yield (first hop, end) of every run of consecutive layers of one model with one divisor."""
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
    """Return the name parts that identify residual writers in these layers, such as `self_attn.o_proj`."""
    inside = [tensor for tensor in shape.tensors if tensor.layer in layers]
    found: dict[str, None] = {}
    for tensor in inside:
        if tensor.writes_residual:
            name = tensor.name.partition(f".{tensor.layer}.")[2]
            found[name.rpartition(".")[0]] = None
    for tensor in inside:
        if not tensor.writes_residual and any(name in tensor.name for name in found):
            what = (
                f"mergekit's filters cannot distinguish '{tensor.name}' from tensors that write to the residual stream"
            )
            raise RecipeError("recipe.routing.hops", what, next=instead)
    return list(found)
