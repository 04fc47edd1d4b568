"""Descriptions of merge methods and of models as plain data.

Other packages create them: `merging` describes methods, `checkpoints` describes models. Recipes are thus checked and
search spaces built without loading torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Scalar = float | int | bool | str

# Statistics of a parent over a sample, see `Parameters.statistics`
FISHER, GRAM, INPUTS, PROPAGATED = "fisher", "gram", "inputs", "propagated_gram"
STATISTICS = {
    FISHER: "the diagonal of the Fisher matrix",
    GRAM: "Gram matrices of the inputs of linear layers",
    INPUTS: "the inputs of linear layers",
    PROPAGATED: "Gram matrices of the inputs of linear layers behind the merged earlier layers",
}


@dataclass(frozen=True)
class Param:
    """One parameter of a merge method.

    Attributes:
        low: Lower bound of `{search: true}`, and of values in recipes if `strict`.
        high: Upper bound, likewise.
        default: Value of a parameter that a recipe leaves out; None: the recipe must give it.
        kind: Type of the value.
        choices: Allowed values of the kind `choice`.
        per_model: Every parent has its own value.
        strict: Values outside [low, high] are errors (as for a density), not only outside of the search bounds.
        open_low: The lower bound itself is not allowed: (low, high].
    """

    low: float | None = None
    high: float | None = None
    default: Scalar | None = None
    kind: Literal["float", "int", "bool", "choice"] = "float"
    choices: tuple[str | bool, ...] = ()
    per_model: bool = False
    strict: bool = False
    open_low: bool = False


@dataclass(frozen=True)
class MergekitForm:
    """Form of a merge method in mergekit, where it differs from evosearch.

    mergekit has every parameter of the method, by the same name, unless `fixed` lists it.

    Attributes:
        name: The method's name in mergekit.
        fixed: Parameter that mergekit lacks → the only value that mergekit computes.
        spelled: Parameter → {our value: mergekit's value}, for values with another spelling there.
        inexact: Parameter → (our value, difference in words), for a value without an equivalent in mergekit. It is
            written unchanged, and the header of the file describes the difference.
        leave_out: Parameters that give a listed model no influence; None if there are none. mergekit merges the base of
            a method with `takes_base=False` as one more model, unless these parameters leave it out.
    """

    name: str
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    spelled: Mapping[str, Mapping[Scalar, Scalar]] = field(default_factory=dict)
    inexact: Mapping[str, tuple[Scalar, str]] = field(default_factory=dict)
    leave_out: Mapping[str, Scalar] | None = None


@dataclass(frozen=True)
class MethodSpec:
    """A merge method as its registry declares it.

    Attributes:
        name: The value of `merge_method` in recipes.
        paper: Identifier of the source, such as `arXiv:2306.01708`.
        parameters: Parameter → its description.
        needs_base: `base_model` is required: the method works on differences from it.
        takes_base: `base_model` takes part in the merge; if false, it only provides config and tokenizer.
        models: Least and greatest number of models, not counting the base; None: no limit.
        random: The method draws masks, which are keyed by the contents of the models.
        summary: When the method helps, in one sentence.
        mergekit: The method in mergekit; None if mergekit has no equivalent.
        differentiable: Parameters in which the method has a derivative; none for a method without one.
        statistic: Statistic of every parent over the recipe's sample that the method needs; empty for none.
        aligns: The method matches the units of its models first, so they need not be related.
    """

    name: str
    paper: str
    parameters: Mapping[str, Param]
    needs_base: bool = False
    takes_base: bool = True
    models: tuple[int, int | None] = (1, None)
    random: bool = False
    summary: str = ""
    mergekit: MergekitForm | None = None
    differentiable: tuple[str, ...] = ()
    statistic: str = ""
    aligns: bool = False

    @property
    def sequential(self) -> bool:
        """Whether a layer's statistic depends on the merged earlier layers, and so on all numbers of the recipe.

        Such a method merges whole models, and cannot be searched: every candidate would need its own statistics.
        """
        return self.statistic == PROPAGATED


class Place(str, Enum):
    """Position of a tensor in a model."""

    EMBEDDINGS = "embeddings"
    LAYER = "layer"
    FINAL_NORM = "final_norm"
    HEAD = "head"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    Attributes:
        name: Its name on disk.
        place: Its position in the model.
        layer: Its layer, only if `place` is LAYER.
        writes_residual: Its output is added to the residual stream; routing scales these tensors.
    """

    name: str
    place: Place
    layer: int | None = None
    writes_residual: bool = False


@dataclass(frozen=True)
class ModelShape:
    """The tensors of a checkpoint and their positions in the model.

    Attributes:
        architecture: Class name in transformers.
        num_layers: Number of layers.
        tensors: All tensors, in the order of the model.
        tied_embeddings: The output head shares the token embeddings.
        writer_offset: What the model adds to a stored weight that writes to the residual stream before it multiplies
            by it.
        kinds: The config lists the kind of each layer. Not compared: one config may list what another one implies.
        mergekit_biases: mergekit's definition of the architecture includes its biases.
        head_size: Dimensions of an attention head; 0 if the config does not tell. Not compared: tensors have sizes.
        by_name: Name on disk → tensor.
    """

    architecture: str
    num_layers: int
    tensors: tuple[TensorSpec, ...]
    tied_embeddings: bool = False
    writer_offset: float = 0.0
    kinds: bool = field(default=False, compare=False)
    mergekit_biases: bool = True
    head_size: int = field(default=0, compare=False)
    by_name: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {tensor.name: tensor for tensor in self.tensors})

    def names(self, place: Place) -> tuple[str, ...]:
        """Return the names of the tensors at a position."""
        return tuple(tensor.name for tensor in self.tensors if tensor.place is place)

    def at_layer(self, name: str, layer: int) -> str:
        """Return the name of a layer's tensor in another layer; other tensors keep their name."""
        own = self.by_name[name].layer
        return name if own is None else name.replace(f".{own}.", f".{layer}.", 1)
