"""LoRA adapter of a merge: its tensors and its configuration."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from evosearch.checkpoints.adapters.tensors import PREFIX
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.apply import apply, extremes, not_finite, operations
from evosearch.materialize.low_rank import EPS, LowRank, factorize
from evosearch.materialize.meta_model import meta_model
from evosearch.materialize.plan import Input, TensorOp
from evosearch.recipe.schema import Recipe

SEED = 0  # of the random projections; fixed, so that equal recipes give equal adapters
WHERE = "--format adapter"


class Lora:
    """An adapter under construction.

    Attributes:
        tensors: Name in adapter_model.safetensors → tensor.
        factors: Linear weight (name on disk) → its factors.
        saved: Names on disk of the tensors stored in full.
    """

    def __init__(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], base: Checkpoint) -> None:
        self.recipe, self.checkpoints, self.base = recipe, checkpoints, base
        self.places = {name: base.family.placement(name, base.config) for name in base.tensors}
        self.names = {place.parameter: name for name, place in self.places.items() if not place.index}
        shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
        content = lambda name: checkpoints[name].content_sha256()  # noqa: E731
        self.ops = operations(recipe, shapes, base.shape, self._load, content, checkpoints=checkpoints)
        live = meta_model(base.config, str(base.folder / CONFIG))  # shows which modules are linear and how they store
        self.modules = dict(live.named_modules(remove_duplicate=False))
        self.linear = {
            op.tensor: path
            for op in self.ops
            if (path := self._module(op.tensor)) is not None
            and isinstance(self.modules[path], torch.nn.Linear | Conv1D)
            and self.places[op.tensor].parameter.endswith(".weight")
        }
        self.tensors: dict[str, torch.Tensor] = {}
        self.factors: dict[str, LowRank] = {}
        self.saved: list[str] = []
        self.modules_to_save: list[str] = []
        self.bias, self.tied = "none", False  # whether biases, and tied embeddings, are stored

    def save_others(self, allowed: bool) -> None:
        """Store changed tensors other than linear weights. This comes first, because factorization takes long.

        Args:
            allowed: Whether such tensors may be stored in full.

        Raises:
            RecipeError: There are such tensors, and they may not or cannot be stored.
        """
        changed = {op.tensor: merged for op in self.ops if (merged := self._changed_in_full(op)) is not None}
        stacked = [name for name in changed if self._module(name) is None]
        if stacked:
            next = "Keep the base's values (weight 0 with a filter), or export a checkpoint"
            what = (
                f"changes tensors that the model stacks with others, which is not supported: {_sizes(stacked, changed)}"
            )
            raise RecipeError(WHERE, what, next=next)
        if changed and not allowed:
            what = f"changes tensors that LoRA does not cover: {_sizes(list(changed), changed)}"
            next = "Store them in full with --save-modules, or keep the base's values (weight 0 with a filter)"
            raise RecipeError(WHERE, what, next=next)
        for name, merged in changed.items():
            path = self._module(name)
            assert path is not None
            if isinstance(self.modules[path], torch.nn.Linear | Conv1D):  # a bias, which peft stores separately
                self.tensors[f"{PREFIX}{path}.base_layer.bias"] = merged
                self.bias = "lora_only"
                self.saved.append(name)
            elif path not in self.modules_to_save:
                self._save_module(path, changed)

    def factorize(self, rank: int) -> None:
        """Compute A and B of every linear weight that changed itself or in its bias.

        Args:
            rank: Maximum rank.

        Raises:
            RecipeError: No tensor changed.
        """
        generator = torch.Generator().manual_seed(SEED)
        biased = {name.removeprefix(PREFIX).removesuffix(".base_layer.bias") for name in self.tensors}
        for op in self.ops:
            if op.tensor in self.linear:
                delta, noise = self._delta(op)
                if delta is not None:
                    self._add(op.tensor, delta, rank, noise, generator)
                elif self.linear[op.tensor] in biased:
                    self._add_nothing(op.tensor, generator)
        if not self.tensors:
            raise RecipeError(WHERE, "the merged model equals its base; there is no change to store")
        if not self.factors:  # peft requires at least one LoRA
            self._add_nothing(next(iter(self.linear)), generator)

    def config(self, name: str) -> dict[str, Any]:
        """Return adapter_config.json: the most common rank, and patterns for the others. α = r, so that B·A is ΔW."""
        ranks = {self.linear[name]: found.rank for name, found in self.factors.items()}
        common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        others = {path: rank for path, rank in ranks.items() if rank != common}
        model, _, revision = name.partition("@")
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model,
            "revision": revision or None,
            "inference_mode": True,
            "r": common,
            "lora_alpha": common,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": self._targets(list(ranks)),
            "modules_to_save": self.modules_to_save or None,
            "fan_in_fan_out": any(isinstance(self.modules[path], Conv1D) for path in ranks),
            "bias": self.bias,
            "ensure_weight_tying": self.tied,
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
        }

    def _add(self, name: str, delta: torch.Tensor, rank: int, noise: float, generator: torch.Generator) -> None:
        path = self.linear[name]
        stored = delta.T if isinstance(self.modules[path], Conv1D) else delta  # (out, in)
        found = factorize(stored, rank, noise, generator)
        self.tensors |= {f"{PREFIX}{path}.lora_A.weight": found.a, f"{PREFIX}{path}.lora_B.weight": found.b}
        self.factors[name] = found

    def _add_nothing(self, name: str, generator: torch.Generator) -> None:
        self._add(name, torch.zeros(self.base.tensors[name].shape), 1, 0.0, generator)

    def _targets(self, paths: list[str]) -> list[str]:
        """Return modules by the last component of their path if that is unambiguous, else by the full path."""
        leaves = {path.rpartition(".")[2] for path in paths}
        meant = {leaf: {path for path in self.modules if path.rpartition(".")[2] == leaf} for leaf in leaves}
        short = {leaf for leaf in leaves if meant[leaf] <= set(paths)}
        return sorted({leaf if (leaf := path.rpartition(".")[2]) in short else path for path in paths})

    def _module(self, tensor: str) -> str | None:
        """Return the live module that has a tensor as parameter; None if the tensor is only a part of a parameter."""
        place = self.places[tensor]
        return None if place.index else place.parameter.rpartition(".")[0]

    def _save_module(self, path: str, changed: Mapping[str, torch.Tensor]) -> None:
        """Store a module with all of its parameters, as peft expects; for tied embeddings, also the head."""
        self.modules_to_save.append(path)
        heads = [copy for copy in self.base.family.tied if self.base.shape.tied_embeddings]
        for kind, _ in self.modules[path].named_parameters(recurse=False):
            name = self.names[f"{path}.{kind}"]
            tensor = changed[name] if name in changed else self.base.load(name).float()
            self.tensors[f"{PREFIX}{path}.{kind}"] = tensor
            self.saved.append(name)
            for head in heads:
                if self.base.family.tied[head] == name:
                    live = self.base.family.placement(head, self.base.config).parameter
                    self.tensors[f"{PREFIX}{live}"] = tensor.clone()
                    self.tied = True

    def _changed_in_full(self, op: TensorOp) -> torch.Tensor | None:
        """Return a changed tensor (*shape) float32 that LoRA does not cover; None if covered or unchanged."""
        if op.tensor in self.linear:
            return None
        delta, _ = self._delta(op)
        return None if delta is None else self.base.load(op.tensor).float() + delta

    def _delta(self, op: TensorOp) -> tuple[torch.Tensor | None, float]:
        """Return merged − base (*shape) float32, or None if within rounding errors; and the size of those errors."""
        merged, theta = apply(op, self._load, torch.float32), self.base.load(op.tensor).float()
        if not extremes(merged).isfinite().all():
            raise CandidateError("materialize", not_finite(op.tensor, "float32"))
        noise = EPS / 2 * float(theta.square().mean().sqrt())  # one or two sums, each rounded to float32
        delta = merged - theta
        return (None if torch.allclose(merged, theta, rtol=4 * EPS, atol=8 * noise) else delta), noise

    def _load(self, source: Input) -> torch.Tensor:
        return self.checkpoints[source.reference].load(source.tensor)


def _sizes(names: list[str], tensors: Mapping[str, torch.Tensor]) -> str:
    """List the first names with their sizes in float32, and the total."""
    sizes = {name: tensors[name].numel() * 4 for name in names}
    shown = ", ".join(f"{name} ({_bytes(size)})" for name, size in list(sizes.items())[:8])
    more = f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    return f"{shown}{more}, {_bytes(sum(sizes.values()))} in total"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
