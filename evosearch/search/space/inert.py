"""Numbers that decide nothing: searched, they would cost candidates and teach an optimizer noise.

A value is looked up as `plan` does it: in a model's own scope, then in the wider ones; the base has none of its own in
methods that merge differences from it. What no lookup of any tensor comes to is idle.
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


def deciding(
    recipe: Recipe, spec: MethodSpec, shape: ModelShape, sites: Mapping[Target, tuple[Piece, ...]]
) -> set[str]:
    """The dimensions that decide at least one tensor of a recipe of this method.

    Args:
        recipe: the template, filled anyhow.
        shape: the output's layout.
        sites: every setting with holes.
    """
    found: set[str] = set()
    named = {(join("", *path, "parameters"), parameter): pieces for (path, parameter), pieces in sites.items()}
    for block, tensors in _parts(blocks(recipe), shape):
        for name, param in spec.parameters.items():
            for scopes in _lookups(block, spec, param.per_model):
                asked = [(key, scope) for key, scope in scopes if name in scope]
                if any((key, name) in named for key, _ in asked):
                    for tensor in tensors:
                        found.update(_reached(name, asked, named, tensor))
    return found


def reason(template: Mapping[str, Any], target: Target, methods: Sequence[MethodSpec]) -> tuple[str, str]:
    """Why a number of this setting decides nothing, and what to do, in words."""
    path, parameter = target
    node: Any = template
    bases = {node.get("base_model")}
    for key in path:
        node = node[key]
        bases |= {node.get("base_model")} if isinstance(node, Mapping) else set()
    model = node.get("model")
    if model is None:
        return f"every model has a {parameter} of its own", "Leave it out here, or leave out the models' own"
    if model in bases and all(spec.takes_base for spec in methods):
        named = " and ".join(spec.name for spec in methods)
        return f"'{model}' is the base, from which {named} takes differences", "Leave it out"
    return "every tensor that it could decide has another value", "Leave it out"


def _lookups(block: Block, spec: MethodSpec, per_model: bool) -> Iterator[Scopes]:
    """Where a parameter is looked up: once, or once for every model that has one."""
    shared = tuple(zip(block.keys, block.shared, strict=True))
    if not per_model:
        yield shared
        return
    for entry in block.parents if spec.takes_base else block.entries:
        yield ((join(entry.where, "parameters"), entry.own), *shared)


def _reached(name: str, scopes: Scopes, sites: Sites, tensor: TensorSpec) -> tuple[str, ...]:
    """The dimensions that a parameter has at one tensor; none where its value there is fixed."""
    for key, scope in scopes:
        pieces = sites.get((key, name))
        if pieces is None:
            if evaluate(scope[name], tensor.name, 0.0) is not None:
                return ()
            continue
        for piece in pieces:
            if matches(piece.pattern, tensor.name):
                return piece.deciding(tensor)
    return ()


def _parts(parts: Sequence[Block], shape: ModelShape) -> Iterator[tuple[Block, list[TensorSpec]]]:
    """Every block and the output's tensors that it gives: embeddings the first, final norm and head the last."""
    start = 0
    for block in parts:
        first, end = block.entries[0].layers or (0, shape.num_layers)
        own = range(start, start + end - first)
        start = own.stop
        outside = {Place.EMBEDDINGS} if block is parts[0] else set[Place]()
        outside |= {Place.FINAL_NORM, Place.HEAD} if block is parts[-1] else set()
        yield block, [tensor for tensor in shape.tensors if tensor.layer in own or tensor.place in outside]
