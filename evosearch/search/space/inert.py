"""Detection of inert holes, whose numbers affect no tensor and would only add noise to a search.

Values are looked up as in `plan`: in a model's own scope, then in wider ones; the base has no scope of its own in
methods that merge differences from it. A number that no lookup of any tensor reaches is inert.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evosearch.documents import join
from evosearch.recipe.blocks import Block, blocks
from evosearch.recipe.parameters import Setting, evaluate
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Place, TensorSpec
from evosearch.search.space.depth import Piece, matches
from evosearch.search.space.template import Target

Sites = Mapping[tuple[str, str], tuple[Piece, ...]]  # (key of a scope, parameter) → its pieces
Scopes = Sequence[tuple[str, Mapping[str, Setting]]]  # (key, scope), narrowest first


def effective(
    recipe: Recipe, spec: MethodSpec, shape: ModelShape, sites: Mapping[Target, tuple[Piece, ...]]
) -> set[str]:
    """Return the dimensions that affect at least one tensor of a recipe.

    Args:
        recipe: The template, filled with any genome of this method.
        spec: The recipe's method.
        shape: Tensors of the output.
        sites: Every setting with holes.
    """
    found: set[str] = set()
    named = {(join("", *path, "parameters"), parameter): pieces for (path, parameter), pieces in sites.items()}
    for block, tensors in _with_tensors(blocks(recipe), shape):
        for name, param in spec.parameters.items():
            for scopes in _lookups(block, spec, param.per_model):
                given = [(key, scope) for key, scope in scopes if name in scope]
                if any((key, name) in named for key, _ in given):
                    for tensor in tensors:
                        found.update(_reached(name, given, named, tensor))
    return found


def reason(template: Mapping[str, Any], target: Target, methods: Sequence[MethodSpec]) -> tuple[str, str]:
    """Return why a number of this setting is inert, and what to do about it."""
    path, parameter = target
    node: Any = template
    bases = {node.get("base_model")}
    for key in path:
        node = node[key]
        bases |= {node.get("base_model")} if isinstance(node, Mapping) else set()
    model = node.get("model")
    if model is None:
        return f"every model has its own {parameter}", "Remove it here, or remove the models' own"
    if model in bases and all(spec.takes_base for spec in methods):
        named = " and ".join(spec.name for spec in methods)
        return f"'{model}' is the base, from which {named} takes differences", "Remove it"
    return "another setting takes precedence at every tensor that it could affect", "Remove it"


def _lookups(block: Block, spec: MethodSpec, per_model: bool) -> Iterator[Scopes]:
    """Yield the scopes in which a parameter is looked up: once, or once for every model."""
    shared = tuple(zip(block.keys, block.shared, strict=True))
    if not per_model:
        yield shared
        return
    for entry in block.parents if spec.takes_base else block.entries:
        yield ((join(entry.where, "parameters"), entry.own), *shared)


def _reached(name: str, scopes: Scopes, sites: Sites, tensor: TensorSpec) -> tuple[str, ...]:
    """Return the dimensions that affect a parameter at one tensor; none if its value there is fixed."""
    for key, scope in scopes:
        pieces = sites.get((key, name))
        if pieces is None:
            if evaluate(scope[name], tensor.name, 0.0) is not None:
                return ()
            continue
        for piece in pieces:
            if matches(piece.pattern, tensor.name):
                return piece.dimensions_at(tensor)
    return ()


def _with_tensors(found: Sequence[Block], shape: ModelShape) -> Iterator[tuple[Block, list[TensorSpec]]]:
    """Yield every block with its tensors of the output: the first has embeddings, the last final norm and head."""
    start = 0
    for block in found:
        first, end = block.entries[0].layers or (0, shape.num_layers)
        own = range(start, start + end - first)
        start = own.stop
        outside = {Place.EMBEDDINGS} if block is found[0] else set[Place]()
        outside |= {Place.FINAL_NORM, Place.HEAD} if block is found[-1] else set()
        yield block, [tensor for tensor in shape.tensors if tensor.layer in own or tensor.place in outside]
