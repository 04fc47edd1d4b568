"""The plan of a merge: one operation a tensor, with every parameter as it is there. Reads no disk."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.merging.parameters import Parameters
from evosearch.recipe.parameters import Setting, lookup
from evosearch.recipe.schema import Input, Recipe, check
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Scalar


@dataclass(frozen=True)
class TensorOp:
    """How one tensor of the output is made.

    Attributes:
        tensor: its name on disk, in the output and in every source.
        method: the merge method.
        base: the base's reference, or None.
        parents: the parents' references, in the recipe's order.
        parameters: evaluated at this tensor.
    """

    tensor: str
    method: str
    base: str | None
    parents: tuple[str, ...]
    parameters: Parameters

    @property
    def sources(self) -> tuple[str, ...]:
        """Every model whose tensor is read."""
        return (self.base, *self.parents) if self.base is not None else self.parents


def donor_of(recipe: Recipe) -> str:
    """The model that config, tokenizer and chat template come from: the base, or else the first model."""
    return recipe.references()[0]


def output_dtype(recipe: Recipe) -> torch.dtype:
    """The type the merged weights are rounded to."""
    dtype: torch.dtype = getattr(torch, recipe.output_dtype)
    return dtype


def plan(recipe: Recipe, shape: ModelShape, methods: Mapping[str, MethodSpec]) -> tuple[TensorOp, ...]:
    """Every operation of a merge, in the order of the output's tensors.

    A parameter is looked up in the model's own `parameters`, then in the recipe's, then is the method's default; where
    no filter of a scope matches, the next scope is asked.

    Args:
        shape: the layout of the output, and of every source.

    Raises:
        RecipeError: the recipe does not fit its method, or a parameter without default has no value at some tensor.
    """
    check(recipe, methods)
    assert recipe.merge_method is not None
    spec = methods[recipe.merge_method]
    _refuse_hidden_base(recipe, spec)
    base = recipe.base_model if spec.takes_base else None
    parents = recipe.parents if spec.takes_base else recipe.models
    names, dtype = tuple(entry.model for entry in parents), getattr(torch, recipe.dtype)
    ops = []
    for tensor in shape.by_name:
        at = _At(recipe, tensor, shape.position(tensor))
        shared = {name: at.shared(name, p) for name, p in spec.parameters.items() if not p.per_model}
        own = {name: at.own(name, p, parents) for name, p in spec.parameters.items() if p.per_model}
        ops.append(TensorOp(tensor, spec.name, base, names, Parameters(shared, own, dtype)))
    return tuple(ops)


def _refuse_hidden_base(recipe: Recipe, spec: MethodSpec) -> None:
    """mergekit averages an unlisted base in, with the recipe's weight. Whoever wants that can say so."""
    listed = [entry.model for entry in recipe.models]
    if spec.takes_base or recipe.base_model is None or recipe.base_model in listed:
        return
    hidden = [name for name, param in spec.parameters.items() if param.per_model and name in recipe.parameters]
    if hidden:
        raise RecipeError(
            documents.join("recipe", "parameters", hidden[0]),
            f"is it meant for base_model, too? {spec.name} has no base apart from its models",
            "List the base in models with a weight of its own (0 to leave it out), or give every model its own",
        )


@dataclass(frozen=True)
class _At:
    """Parameter values at one tensor."""

    recipe: Recipe
    tensor: str
    position: float

    def shared(self, name: str, param: Param) -> Scalar:
        return self._value(name, param, (self.recipe.parameters,), documents.join("recipe", "parameters", name))

    def own(self, name: str, param: Param, parents: tuple[Input, ...]) -> tuple[Scalar, ...]:
        values = []
        for entry in parents:
            where = documents.join("recipe", "models", self.recipe.models.index(entry), "parameters", name)
            values.append(self._value(name, param, (entry.parameters, self.recipe.parameters), where))
        return tuple(values)

    def _value(self, name: str, param: Param, scopes: tuple[Mapping[str, Setting], ...], where: str) -> Scalar:
        value = lookup(name, scopes, self.tensor, self.position)
        if value is None:
            value = param.default
        if value is None:
            next = "Add a last entry without a filter, for all other tensors"
            raise RecipeError(where, f"no filter matches tensor '{self.tensor}'", next=next)
        return value
