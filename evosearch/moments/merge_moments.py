"""Gram matrices behind the merged earlier layers (RegMean++, Nguyen et al. 2025, arXiv:2508.03121).

For every layer l, from the first to the last: the sample has passed the merged layers 1 … l−1; it passes layer l of
each parent, whose linear layers' inputs give its Gram matrices; layer l is merged, and the sample passes the result.
Final norm and head are one more layer at the end; embeddings are merged before the first.

Unlike a parent's own statistics, these are of one recipe: a change of any weight, parameter or parent changes them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evosearch.checkpoints.cache.layout import STATISTICS
from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.apply import apply, is_transposed
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import Input, TensorOp, donor_of, output_dtype, plan
from evosearch.materialize.skeleton import build, generation_folder, path_of_layers, targets
from evosearch.merging.registry import specs
from evosearch.moments.files import Moments, Report, check_finite, computed_once, scratch, sums
from evosearch.moments.gram_matrices import adding, linear_layers, sharing, width
from evosearch.moments.layer_walk import LayerWalk
from evosearch.moments.sample_tokens import Tokens, digest_of
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import PROPAGATED, Place

VERSION = 1  # of the computation; a change leaves older files unused


@dataclass(frozen=True)
class MergeMoments:
    """The Gram matrices of all parents of one recipe, in one file of the cache.

    Attributes:
        recipe: The recipe: whole models, without a base that takes part in the merge.
        checkpoints: Reference → checkpoint, for every model that the recipe names.
        read: Returns the tokens of the recipe's sample.
        cache: The node's cache folder.
        device: Where the model is run.
        report: Called with a description and the completed fraction.
    """

    recipe: Recipe
    checkpoints: Mapping[str, Checkpoint] = field(repr=False)
    read: Callable[[], Tokens] = field(repr=False)
    cache: Path
    device: torch.device
    report: Report = field(repr=False)

    @property
    def donor(self) -> Checkpoint:
        """The model that the config is taken from."""
        return self.checkpoints[donor_of(self.recipe)]

    @property
    def file(self) -> Path:
        """The file, which need not exist yet."""
        assert self.recipe.sample is not None
        contents = {name: self.checkpoints[name].content_sha256() for name in self.recipe.references()}
        contents[self.recipe.sample.key] = digest_of(self.read())
        left_out = ("_name_or_path", "transformers_version")
        config = {key: value for key, value in self.donor.config.items() if key not in left_out}
        parts = [VERSION, PROPAGATED, recipe_id(self.recipe, contents), str(self._dtype), config]
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self.cache / STATISTICS / f"{name}.safetensors"

    @cached_property
    def moments(self) -> Moments:
        """The matrices of parent i at a tensor, named `i TENSOR`; computed if they are missing in the cache.

        Raises:
            CheckpointError: The model cannot be built or run, or the cache cannot be written.
            CandidateError: A layer's merge is undefined.
        """
        what = f"{PROPAGATED} of a merge of {', '.join(self.recipe.parents)}"
        return computed_once(self.cache, self.file, what, self.report, partial(self._compute, what=what))

    def _compute(self, file: Path, what: str) -> None:
        walk, tokens = _Walk.of(self), self.read()
        shapes = {f"{index} {name}": shape for index in walk.parents for name, shape in walk.matrices.items()}
        shared = {f"{i} {n}": f"{i} {own}" for i in walk.parents for n, own in walk.first.items() if n != own}
        sizes = [len(document) for document in tokens]
        with (
            sums(file, shapes, shared) as totals,
            scratch(file.parent, file.stem, (sum(sizes), walk.model.config.hidden_size)) as states,
        ):
            walk.fill(totals, torch.split(states, sizes), tokens, partial(self.report, f"computing {what}"))

    @property
    def _dtype(self) -> torch.dtype:
        """The type that the model runs in: its own on a GPU; bfloat16 is slow on a CPU."""
        return self.donor.dtype if self.device.type == "cuda" else torch.float32


@dataclass(frozen=True)
class ParentMoments:
    """The Gram matrices of one parent of a recipe; see `checkpoints.reader.Statistics`."""

    merge: MergeMoments
    parent: int

    def has(self, name: str) -> bool:
        """Return whether there is a matrix at a tensor."""
        return self.merge.moments.has(f"{self.parent} {name}")

    def load(self, name: str) -> Tensor:
        """Return the matrix (in, in) at a tensor: float32 on the CPU, memory-mapped."""
        return self.merge.moments.load(f"{self.parent} {name}")


@dataclass(frozen=True)
class _Walk:
    """One model whose layers are overwritten, in turn, by each parent's and by the merged ones.

    Attributes:
        out: Layout of the merge.
        ops: Operations of the merge, without statistics.
        model: The live model.
        live: Tensor → the live tensor that it is written into.
        layers: Tensor → linear layer.
        first: Tensor → the first one whose layer reads the same inputs.
        merge: Whose matrices these are.
    """

    out: Output
    ops: Sequence[TensorOp]
    model: Any
    live: Mapping[str, Tensor]
    layers: Mapping[str, nn.Module]
    first: Mapping[str, str]
    merge: MergeMoments

    @classmethod
    def of(cls, merge: MergeMoments) -> "_Walk":
        checkpoints, donor = merge.checkpoints, merge.donor
        out = output(merge.recipe, checkpoints)
        ops = plan(merge.recipe, {name: one.shape for name, one in checkpoints.items()}, out.shape, specs())
        load = _loader(checkpoints)
        model = build(
            generation_folder(donor), out.config, out.origins, lambda name: load(out.origins[name]), merge._dtype
        ).to(merge.device)
        places = {name: donor.family.placement(name, out.config) for name in out.origins}
        layers = {
            name: layer
            for name, layer in linear_layers(model, places).items()
            if out.shape.by_name[name].place is not Place.EMBEDDINGS
        }
        live = targets(model, out.config, donor.family, out.origins)
        return cls(out, ops, model, live, layers, sharing(model, layers, merge.read()[0]), merge)

    @property
    def parents(self) -> range:
        return range(len(self.ops[0].parents))

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Tensor → shape of its matrix, for those that are not shared."""
        return {n: (width(self.layers[n]), width(self.layers[n])) for n, own in self.first.items() if n == own}

    @torch.no_grad()
    def fill(
        self,
        totals: Mapping[str, Tensor],
        states: Sequence[Tensor],
        tokens: Tokens,
        done: Callable[[float], None],
    ) -> None:
        """Sum the matrices of all parents up, layer by layer."""
        depth, load = self.out.shape.num_layers, _loader(self.merge.checkpoints)
        path = path_of_layers(self.out, self.merge.donor.family)
        walk = LayerWalk(self.model, list(self.model.get_submodule(path)), tokens, states)
        for op in self._at(None):
            self._write(op, self._merged(op, {}))
        for position in range(depth + 1):
            own = self._at(position)
            read = {op.tensor: self.layers[op.tensor] for op in own if self.first.get(op.tensor) == op.tensor}
            for parent in self.parents if read else ():
                for op in own:
                    self._write(op, load(op.parents[parent]))
                found = {name: totals[f"{parent} {name}"] for name in read}
                walk.read(position, read, adding(found, 1.0 / sum(map(len, tokens))))
                check_finite(found, self.ops[0].parents[parent].reference)
            if position < depth:
                for op in own:
                    self._write(op, self._merged(op, totals))
                walk.advance(position)
            done((position + 1) / (depth + 1))

    def _at(self, position: int | None) -> list[TensorOp]:
        """Return the operations of one layer; of the embeddings for None; of final norm and head behind all layers."""
        by_name, depth = self.out.shape.by_name, self.out.shape.num_layers
        found = []
        for op in self.ops:
            spec = by_name[op.tensor]
            outside = None if spec.place is Place.EMBEDDINGS else depth
            if (spec.layer if spec.layer is not None else outside) == position:
                found.append(op)
        return found

    def _merged(self, op: TensorOp, totals: Mapping[str, Tensor]) -> Tensor:
        """Return the merged tensor, as the merge itself will compute it."""
        load = _loader(self.merge.checkpoints)
        if op.tensor in self.first and totals:
            grams = [totals[f"{parent} {self.first[op.tensor]}"] for parent in self.parents]
            loaders = tuple(partial(_same, gram) for gram in grams)
            op = replace(op, statistics=loaders, transposed=is_transposed(self.merge.donor, op.tensor))
        return apply(op, load, output_dtype(self.merge.recipe))

    def _write(self, op: TensorOp, tensor: Tensor) -> None:
        self.live[op.tensor].copy_(tensor)


def _loader(checkpoints: Mapping[str, Checkpoint]) -> Any:
    def load(source: Input) -> Tensor:
        return checkpoints[source.reference].load(source.tensor)

    return load


def _same(tensor: Tensor) -> Tensor:
    return tensor
