"""What a recipe must know of methods and of models, as plain data.

The rooms above fill these in (`merging` its methods, `checkpoints` its models) and `service` passes them down, so
that a recipe can be checked, and a search space laid out, without loading torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Scalar = float | int | bool | str


@dataclass(frozen=True)
class Param:
    """One parameter of a merge method.

    `low` and `high` bound what a recipe may say where `strict`, and are what `{search: true}` searches; `per_model`
    says whether every parent has its own value. A parameter without a default must be given.
    """

    low: float | None = None
    high: float | None = None
    default: Scalar | None = None
    kind: Literal["float", "int", "bool", "choice"] = "float"
    choices: tuple[str | bool, ...] = ()
    per_model: bool = False
    strict: bool = False  # values outside [low, high] are errors (a density), not merely outside the search bounds
    open_low: bool = False  # the lower bound itself is not allowed: (low, high]


@dataclass(frozen=True)
class MethodSpec:
    """A merge method as its registry declares it."""

    name: str
    paper: str
    parameters: Mapping[str, Param]
    needs_base: bool = False  # `base_model` is required: the method works on deltas from it
    takes_base: bool = True  # `base_model` is allowed
    models: tuple[int, int | None] = (1, None)  # least and most entries of `models` (the base not counted)
    random: bool = False  # it draws masks, which are keyed by the contents of the models


class Place(str, Enum):
    """Where in a model a tensor stands."""

    EMBEDDINGS = "embeddings"
    LAYER = "layer"
    FINAL_NORM = "final_norm"
    HEAD = "head"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint, under its name on disk."""

    name: str
    place: Place
    layer: int | None = None  # only where place is LAYER
    writes_residual: bool = False  # its output is added to the residual stream (routing scales these)


@dataclass(frozen=True)
class ModelShape:
    """The layout of a checkpoint: which tensors it has, and where each stands.

    `writer_offset` is what the model adds to a stored weight that writes to the residual stream before it multiplies by
    it; `kinds` says whether the config tells of single layers which kind they are.
    """

    architecture: str
    num_layers: int
    tensors: tuple[TensorSpec, ...]
    tied_embeddings: bool = False
    writer_offset: float = 0.0
    kinds: bool = field(default=False, compare=False)  # written out in one config, implied in another
    by_name: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {tensor.name: tensor for tensor in self.tensors})

    def names(self, place: Place) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors if tensor.place is place)

    def at_layer(self, name: str, layer: int) -> str:
        """The name that a layer's tensor has in another layer; other tensors keep theirs."""
        own = self.by_name[name].layer
        return name if own is None else name.replace(f".{own}.", f".{layer}.", 1)
