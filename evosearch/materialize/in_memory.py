"""The resident model: built once, then overwritten by one candidate after another."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError, did_you_mean
from evosearch.materialize.apply import apply, extremes, operations, refuse_infinite
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.fit import check_fit
from evosearch.materialize.forward import differences, end_tokens
from evosearch.materialize.layout import Output, output, unchanged
from evosearch.materialize.parents import Tensors, hold
from evosearch.materialize.plan import Input, donor_of, output_dtype
from evosearch.materialize.skeleton import build, generation_folder, path_of_layers, targets
from evosearch.materialize.spread import Spread, spread
from evosearch.merging.parameters import Memory
from evosearch.recipe.schema import Recipe


class ResidentModel:
    """A live transformers model whose weights a recipe is written into.

    After construction nothing is built and no file is opened: a candidate costs the merge alone.

    Args:
        checkpoints: reference → checkpoint, for every model that recipes may name.
        donor: the reference whose config the model is built from (`plan.donor_of`).
        device: where the model lives. The parents are kept there too where they fit, else in mapped host memory.
        compute_dtype: the type the model runs in. Weights are rounded to the recipe's output type first.
        example: any recipe of those to come, where they stack layers otherwise than the donor does.
        beside: a resident model of the same checkpoints and device, whose tensors of the parents are used here too.
        over: devices that the model is spread over, `device` the first of them. The parents are then in host memory.

    Attributes:
        model: the transformers model, in eval mode, with sdpa attention.

    Raises:
        CheckpointError: the checkpoints do not fit each other, or transformers cannot build the donor's model.
        RecipeError: the example asks for layers that are not there.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        donor: str,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        example: Recipe | None = None,
        beside: "ResidentModel | None" = None,
        over: Spread | None = None,
    ) -> None:
        first = checkpoints[donor]
        self.output = unchanged(donor, first) if example is None else output(example, checkpoints)
        if example is None:
            check_compatible(list(checkpoints.values()))
        else:
            check_fit(example, checkpoints, self.output)
        self.device, self.shape = torch.device(device), self.output.shape
        self._shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
        self._checkpoints = dict(checkpoints)
        self._memory: Memory = beside._memory if beside is not None else Memory()
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
        self._tensors: Tensors = beside._tensors if beside is not None else hold(checkpoints, home)

    def holds(self, laid: Output) -> bool:
        """Whether an output (`layout.output`) has this model's layers, and a config under which it answers alike."""
        return laid.answers_as(self.output)

    @torch.no_grad()
    def materialize(self, recipe: Recipe, laid: Output | None = None) -> float:
        """Overwrite the model with a recipe's weights.

        Args:
            laid: the recipe's output, where it is known that this model holds it.

        Returns:
            Seconds it took.

        Raises:
            CandidateError: parameters that have no merge, or a merged tensor that is not finite. The model then holds
                no candidate, and the next one overwrites it.
            RecipeError: the recipe does not fit its method, names a model that is not loaded, stacks other layers,
                or has another config.
        """
        started = time.perf_counter()
        self._check_loaded(recipe)
        if laid is None:
            self._check_held(output(recipe, self._checkpoints))
        ops = operations(recipe, self._shapes, self.shape, self._tensor, self._content, self._memory)
        out_dtype, found = output_dtype(recipe), []
        for op in ops:
            target = self._targets[op.tensor]
            merged = apply(op, partial(self._tensor, device=target.device), out_dtype)
            found.append(extremes(merged).to(self.device, non_blocking=True))
            target.copy_(merged)
        refuse_infinite(ops, found, recipe.output_dtype)
        generation: Any = self.model.generation_config
        generation.eos_token_id = self._ends[donor_of(recipe)]  # what ends a text is the export's, too
        return time.perf_counter() - started

    def _tensor(self, source: Input, device: torch.device | None = None) -> torch.Tensor:
        return self._tensors[source.reference][source.tensor].to(device or self.device, non_blocking=True)

    def _content(self, reference: str) -> str:
        return self._checkpoints[reference].content_sha256()

    def _check_loaded(self, recipe: Recipe) -> None:
        for reference in recipe.references():
            if reference not in self._tensors:
                known = ", ".join(self._tensors)
                near = did_you_mean(reference, self._tensors)
                raise RecipeError("recipe.models", f"'{reference}' is not among the loaded models", known, near)

    def _check_held(self, laid: Output) -> None:
        if laid.shape != self.shape:
            what = f"its layers are not those of the loaded model, which has {self.shape.num_layers}"
            raise RecipeError("recipe.slices", what)
        for key, (wanted, got) in differences(laid.config, self.output.config).items():
            raise RecipeError("recipe", f"its config has {key} {wanted!r}, that of the loaded model {got!r}")
