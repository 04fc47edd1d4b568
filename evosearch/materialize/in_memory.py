"""Resident model for merges: built once, then overwritten by one candidate after another."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, RecipeError, did_you_mean
from evosearch.materialize.apply import check_finite, merge, not_finite, operations
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.fit import check_fit
from evosearch.materialize.forward import differences, end_tokens
from evosearch.materialize.layout import Layouts, Output, unchanged
from evosearch.materialize.merge_gradients import MergeGradients
from evosearch.materialize.parents import Tensors, hold
from evosearch.materialize.plan import Input, TensorOp, donor_of, output_dtype
from evosearch.materialize.skeleton import build, generation_folder, path_of_layers, targets
from evosearch.materialize.spread import Spread, spread
from evosearch.merging.method_parameters import Memory
from evosearch.recipe.schema import Recipe


class ResidentModel:
    """A live transformers model whose weights a recipe is written into.

    After construction no module is built and no file is opened: a candidate costs only the merge.

    Args:
        checkpoints: Reference → checkpoint, for every model that recipes may name.
        donor: Reference of the model whose config is used (`plan.donor_of`).
        device: Device of the model. The parents are kept there too if they fit, else in mapped host memory.
        compute_dtype: Type that the model runs in. Weights are rounded to the recipe's output type first.
        example: Any of the recipes to come; needed if their layers differ from the donor's.
        share_with: A resident model of the same checkpoints and device, whose parents' tensors are shared.
        over: Devices to spread the model over, starting with `device`. The parents are then in host memory.

    Attributes:
        model: The transformers model, in eval mode, with sdpa attention.

    Raises:
        CheckpointError: The checkpoints are incompatible, or transformers cannot build the donor's model.
        RecipeError: The example names layers that a model does not have.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        donor: str,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        example: Recipe | None = None,
        share_with: "ResidentModel | None" = None,
        over: Spread | None = None,
    ) -> None:
        first = checkpoints[donor]
        self._layouts: Layouts = share_with._layouts if share_with is not None else Layouts(checkpoints)
        self.output: Output = unchanged(donor, first) if example is None else self._layouts.of(example)
        if example is None:
            check_compatible(list(checkpoints.values()))
        else:
            check_fit(example, checkpoints, self.output)
        self.device, self.shape = torch.device(device), self.output.shape
        self._shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
        self._checkpoints = dict(checkpoints)
        self._memory: Memory = share_with._memory if share_with is not None else Memory()
        origins = self.output.origins
        self.model = build(
            generation_folder(first),
            self.output.config,
            origins,
            lambda name: checkpoints[origins[name].reference].load(origins[name].tensor),
            compute_dtype,
        )
        if over is None:
            self.model.to(self.device)
        else:
            spread(self.model, path_of_layers(self.output, first.family), over)
        generation: Any = self.model.generation_config
        own = generation.eos_token_id
        self._ends = {name: own if name == donor else end_tokens(found) for name, found in checkpoints.items()}
        self._targets = targets(self.model, self.output.config, first.family, origins)
        home = self.device if over is None else torch.device("cpu")
        self._tensors: Tensors = share_with._tensors if share_with is not None else hold(checkpoints, home)
        self._gradients = MergeGradients(self.model, self.output, first.family, self._checkpoints, self._tensors)
        self._planned: tuple[Recipe, tuple[TensorOp, ...]] | None = None  # the last recipe
        self._written: str | None = None  # the recipe whose weights the model has; None: undefined

    def takes(self, recipe: Recipe) -> bool:
        """Return whether a recipe has this model's layers, and a config with which the model answers alike.

        Raises:
            RecipeError: The recipe names layers that a model does not have.
        """
        return recipe.routing is None and self._layouts.of(recipe).answers_as(self.output)

    @torch.no_grad()
    def materialize(self, recipe: Recipe) -> float:
        """Overwrite the model with a recipe's weights, unless it has them already.

        Returns:
            Duration in seconds.

        Raises:
            CandidateError: The merge is undefined for the parameter values, or a merged tensor is not finite. The model
                is then left in an undefined state, which the next candidate overwrites.
            RecipeError: The recipe does not fit its method, names a model that is not loaded, or has other layers or
                another config.
        """
        started = time.perf_counter()
        text = recipe.model_dump_json()  # equal texts have equal numbers, to the last bit
        if text == self._written:
            return time.perf_counter() - started
        ops, self._written = self._operations(recipe), None
        out_dtype = output_dtype(recipe)
        found: dict[str, torch.Tensor] = {}
        for op in ops:
            target = self._targets[op.tensor]
            merged = merge(op, partial(self._tensor, device=target.device), out_dtype, target)
            if merged.largest is None:
                found[op.tensor] = merged.extremes().to(self.device, non_blocking=True)
            elif not math.isfinite(merged.largest):
                raise CandidateError("materialize", not_finite(op.tensor, recipe.output_dtype))
        check_finite([op for op in ops if op.tensor in found], list(found.values()), recipe.output_dtype)
        generation: Any = self.model.generation_config
        generation.eos_token_id = self._ends[donor_of(recipe)]  # those of the export
        self._written = text
        return time.perf_counter() - started

    def forget(self) -> None:
        """Take the model's weights as undefined, after something else has written to them."""
        self._written = None

    @contextmanager
    def differentiate(self, recipe: Recipe, dimensions: int) -> Iterator[Callable[[], tuple[float, ...]]]:
        """Let backward passes within this context compute a gradient in the coefficients of the recipe's merge.

        Args:
            recipe: The recipe that was materialized, with `Dual` numbers where a dimension has an effect.
            dimensions: Number of dimensions.

        Yields:
            A function that returns the gradient (dimensions,), to be called after the last backward pass.

        Raises:
            RecipeError: The merge has no derivative in a parameter that depends on a dimension.
        """
        assert recipe.model_dump_json() == self._written, "another recipe's weights"
        with self._gradients.collecting(self._operations(recipe), dimensions) as total:
            yield total

    def _operations(self, recipe: Recipe) -> tuple[TensorOp, ...]:
        """Plan a recipe; the plan of the last one is kept for its gradient."""
        if self._planned is None or self._planned[0] is not recipe:
            self._check_loaded(recipe)
            self._check_layout(self._layouts.of(recipe))
            ops = operations(
                recipe, self._shapes, self.shape, self._tensor, self._content, self._memory, self._checkpoints
            )
            self._planned = (recipe, ops)
        return self._planned[1]

    def _tensor(self, source: Input, device: torch.device | None = None) -> torch.Tensor:
        return self._tensors[source.reference][source.tensor].to(device or self.device, non_blocking=True)

    def _content(self, reference: str) -> str:
        return self._checkpoints[reference].content_sha256()

    def _check_loaded(self, recipe: Recipe) -> None:
        for reference in recipe.references():
            if reference not in self._tensors:
                known = ", ".join(self._tensors)
                near = did_you_mean(reference, self._tensors)
                raise RecipeError("recipe.models", f"'{reference}' is not loaded", f"Loaded models: {known}", near)

    def _check_layout(self, out: Output) -> None:
        if out.answers_as(self.output):
            return
        if out.shape != self.shape:
            what = f"its layers differ from those of the loaded model, which has {self.shape.num_layers}"
            raise RecipeError("recipe.slices", what)
        for key, (wanted, got) in differences(out.config, self.output.config).items():
            raise RecipeError("recipe", f"its config has {key} {wanted!r}, but the loaded model has {got!r}")
