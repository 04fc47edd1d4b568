"""`evosearch analyze`: figures of task vectors by tensor, layer and kind of module. One tensor is held at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from evosearch.analysis.conflicts import Counts
from evosearch.analysis.inner_products import Gram, change, cosine, gram, relative_change
from evosearch.analysis.subspaces import Subspace, overlap, subspace
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec
from evosearch.search.progress import Watcher
from evosearch.service.analyze_models import Analyzed

TOP = 8  # singular vectors of a subspace
ALL = "all layers"


@dataclass(frozen=True)
class Pair:
    """Figures of two task vectors.

    Attributes:
        models: The two references.
        cosine: cos(τ₁, τ₂); None if one of the two is zero.
        left: Overlap of the leading left singular subspaces, in [0, 1]; a mean over matrices. None without matrices.
        right: The same of the right ones.
    """

    models: tuple[str, str]
    cosine: float | None
    left: float | None
    right: float | None


@dataclass(frozen=True)
class ChangeFigures:
    """Figures of a tensor, or of several together.

    Attributes:
        name: Name of the tensor, of the layer, or of the kind of module.
        layer: Layer of a tensor; None outside of layers and for several.
        kind: Kind of module of a tensor; `all layers` for several kinds.
        elements: Number of weights.
        norms: ‖τ‖ of each model.
        relative: ‖τ‖ / ‖θ₀‖ of each model; None if only the base is zero.
        zeros: Share of weights that a model does not change.
        spread: (Σ |τ|)² / (n Σ τ²) of each model: how evenly the change is spread; None without a change.
        conflict: Share of weights that at least two models change, in which their signs disagree; None without such.
        weighted_conflict: The same, weighted by Σ |τ|.
        pairs: Every two models.
        decomposition: `exact` or `randomized` singular vectors; None without matrices, `mixed` if both were used.
    """

    name: str
    layer: int | None
    kind: str
    elements: int
    norms: tuple[float, ...]
    relative: tuple[float | None, ...]
    zeros: tuple[float, ...]
    spread: tuple[float | None, ...]
    conflict: float | None
    weighted_conflict: float | None
    pairs: tuple[Pair, ...]
    decomposition: str | None


@dataclass(frozen=True)
class WeightAnalysis:
    """Task vectors of models, as `evosearch analyze --json` prints them.

    Attributes:
        base: What changes are measured from.
        models: The models, in the order of all figures.
        top: Number of singular vectors of a subspace.
        total: Figures of all matrices of layers together; of all tensors if there are none.
        layers: Figures of each layer's matrices; embeddings, final norm and head by their place.
        kinds: Figures by kind of module, over all layers.
        tensors: Figures of every tensor.
        left_out: Tensors that not all models have in the same shape.
    """

    base: str
    models: tuple[str, ...]
    top: int
    total: ChangeFigures
    layers: tuple[ChangeFigures, ...]
    kinds: tuple[ChangeFigures, ...]
    tensors: tuple[ChangeFigures, ...]
    left_out: tuple[str, ...]


@dataclass
class _Measured:
    """Sums of one tensor, or of several."""

    gram: Gram
    counts: Counts
    overlaps: list[list[tuple[float, float]]]  # of each pair: (left, right) of each matrix
    methods: set[str]

    def plus(self, other: "_Measured") -> "_Measured":
        pairs = [a + b for a, b in zip(self.overlaps, other.overlaps, strict=True)]
        gram, counts = self.gram + other.gram, self.counts.plus(other.counts)
        return _Measured(gram, counts, pairs, self.methods | other.methods)


def analyze_weights(analyzed: Analyzed, watcher: Watcher, top: int = TOP) -> WeightAnalysis:
    """Compare the task vectors of models.

    Args:
        analyzed: The models. Without a base, changes are measured from the first one.
        watcher: Shows progress and notes.
        top: Number of singular vectors of a subspace.

    Raises:
        RecipeError: There is only one model and no base.
    """
    base, parents = _base_and_parents(analyzed, watcher)
    checkpoints = analyzed.models.checkpoints
    start, others = checkpoints[base], [checkpoints[reference] for reference in parents]
    both, left_out = _shared(start, others)
    by_tensor: dict[str, _Measured] = {}
    for index, tensor in enumerate(both):
        watcher.preparing("comparing tensors", index / len(both))
        by_tensor[tensor.name] = _measured(tensor, start, others, top)
    watcher.preparing("comparing tensors", 1.0)
    by_layer: dict[str, list[TensorSpec]] = {}
    by_kind: dict[str, list[TensorSpec]] = {}
    matrices = [tensor for tensor in both if tensor.layer is None or len(start.tensors[tensor.name].shape) > 1]
    for tensor in matrices:  # gains of norms, which are near 1 and hardly change, would dilute the sums of a layer
        by_layer.setdefault(_layer_name(tensor), []).append(tensor)
        by_kind.setdefault(kind_of(tensor, start.shape), []).append(tensor)

    def together(name: str, tensors: Sequence[TensorSpec], kind: str, layer: int | None = None) -> ChangeFigures:
        found = by_tensor[tensors[0].name]
        for tensor in tensors[1:]:
            found = found.plus(by_tensor[tensor.name])
        return _figures(name, layer, kind, found, parents)

    return WeightAnalysis(
        base=base,
        models=parents,
        top=top,
        total=together(ALL, [tensor for tensor in matrices if tensor.layer is not None] or both, ALL),
        layers=tuple(together(name, tensors, ALL, tensors[0].layer) for name, tensors in by_layer.items()),
        kinds=tuple(together(name, tensors, name) for name, tensors in by_kind.items()),
        tensors=tuple(together(tensor.name, [tensor], kind_of(tensor, start.shape), tensor.layer) for tensor in both),
        left_out=left_out,
    )


def kind_of(tensor: TensorSpec, shape: ModelShape) -> str:
    """Return the kind of module of a tensor: its name within a layer, such as `self_attn.q_proj.weight`."""
    if tensor.layer is None:
        return tensor.name
    return shape.at_layer(tensor.name, 0).partition(".0.")[2] or tensor.name


def _base_and_parents(analyzed: Analyzed, watcher: Watcher) -> tuple[str, tuple[str, ...]]:
    if analyzed.base is not None and analyzed.parents:
        return analyzed.base, analyzed.parents
    if len(analyzed.parents) < 2:
        what = "one model alone has no changes"
        raise RecipeError(analyzed.title, what, "Two models, or a model with --base", "Name the base with --base")
    first, *rest = analyzed.parents
    watcher.note(f"no base is given: changes are measured from {first}")
    return first, tuple(rest)


def _shared(base: Checkpoint, others: Sequence[Checkpoint]) -> tuple[list[TensorSpec], tuple[str, ...]]:
    """Return the tensors that all models have in one shape, and the names of all others."""
    both, left_out = [], []
    for tensor in base.shape.tensors:
        infos = [each.tensors.get(tensor.name) for each in (base, *others)]
        same = all(info is not None and info.shape == base.tensors[tensor.name].shape for info in infos)
        if same:
            both.append(tensor)
        else:
            left_out.append(tensor.name)
    left_out += [name for each in others for name in each.tensors if name not in base.tensors]
    return both, tuple(dict.fromkeys(left_out))


@torch.no_grad()
def _measured(tensor: TensorSpec, base: Checkpoint, others: Sequence[Checkpoint], top: int) -> _Measured:
    theta = base.load(tensor.name)
    changes = [change(each.load(tensor.name), theta) for each in others]
    counts = Counts(len(changes))
    counts.add(changes)
    is_matrix = tensor.place is Place.LAYER and theta.dim() == 2 and len(changes) > 1
    spaces = [subspace(each, top) for each in changes] if is_matrix else []
    overlaps = [list(_overlaps(*pair)) for pair in combinations(spaces, 2)]
    overlaps = overlaps or [[] for _ in combinations(changes, 2)]
    return _Measured(gram(theta, changes), counts, overlaps, {space.method for space in spaces})


def _overlaps(one: Subspace, other: Subspace) -> Iterator[tuple[float, float]]:
    left, right = overlap(one.left, other.left), overlap(one.right, other.right)
    if left is not None and right is not None:
        yield left, right


def _figures(name: str, layer: int | None, kind: str, found: _Measured, models: Sequence[str]) -> ChangeFigures:
    numbers = range(len(models))
    relative = [relative_change(found.gram, index) for index in numbers]
    methods = sorted(found.methods)
    pairs = zip(combinations(numbers, 2), found.overlaps, strict=True)
    return ChangeFigures(
        name=name,
        layer=layer,
        kind=kind,
        elements=found.counts.elements,
        norms=tuple(float(max(found.gram[index + 1, index + 1], 0.0)) ** 0.5 for index in numbers),
        relative=tuple(value if value != float("inf") else None for value in relative),
        zeros=tuple(found.counts.zeros),
        spread=tuple(found.counts.spread),
        conflict=found.counts.conflict,
        weighted_conflict=found.counts.weighted_conflict,
        pairs=tuple(
            Pair(
                (models[a], models[b]),
                cosine(found.gram, a, b),
                _mean([x for x, _ in each]),
                _mean([y for _, y in each]),
            )
            for (a, b), each in pairs
        ),
        decomposition=methods[0] if len(methods) == 1 else ("mixed" if methods else None),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _layer_name(tensor: TensorSpec) -> str:
    return tensor.place.value if tensor.layer is None else f"layer {tensor.layer}"
