"""What a merge changes in its base, as the tensors and the configuration of a LoRA adapter."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from evosearch.checkpoints.adapters.tensors import PREFIX
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.apply import apply, extremes, not_finite, operations
from evosearch.materialize.low_rank import EPS, LowRank, factorize
from evosearch.materialize.plan import Input, TensorOp
from evosearch.recipe.schema import Recipe

SEED = 0  # of the random projections; the same recipe gives the same adapter
WHERE = "--format adapter"


class Lora:
    """The adapter while it is made.

    Attributes:
        tensors: name in adapter_model.safetensors → tensor.
        factors: linear weight, by its name on disk → its factors.
        saved: names on disk of what is stored whole.
    """

    def __init__(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], base: Checkpoint) -> None:
        self.recipe, self.checkpoints, self.base = recipe, checkpoints, base
        self.places = {name: base.family.placement(name, base.config) for name in base.tensors}
        self.names = {place.parameter: name for name, place in self.places.items() if not place.index}
        shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
        self.ops = operations(recipe, shapes, base.shape, self._load, lambda name: checkpoints[name].content_sha256())
        self.modules = dict(_live_model(base).named_modules(remove_duplicate=False))
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
        self.bias, self.tied = "none", False  # whether biases, and embeddings that are the head's too, are stored

    def save_others(self, allowed: bool) -> None:
        """Store what changed and is no linear weight; known before the long part begins.

        Raises:
            RecipeError: something did and may not be stored (`allowed` is false), or cannot.
        """
        changed = {op.tensor: merged for op in self.ops if (merged := self._changed_whole(op)) is not None}
        stacked = [name for name in changed if self._module(name) is None]
        if stacked:
            next = "Leave them as they are in the base (weight 0 by a filter), or export a checkpoint"
            what = f"changes parts of tensors that the model stacks, which is not supported: {_sizes(stacked, changed)}"
            raise RecipeError(WHERE, what, next=next)
        if changed and not allowed:
            what = f"changes more than linear layers, which a LoRA does not reach: {_sizes(list(changed), changed)}"
            next = "Store them whole with --save-modules, or leave them as they are in the base (weight 0 by a filter)"
            raise RecipeError(WHERE, what, next=next)
        for name, merged in changed.items():
            path = self._module(name)
            assert path is not None
            if isinstance(self.modules[path], torch.nn.Linear | Conv1D):  # a bias: peft keeps it beside A and B
                self.tensors[f"{PREFIX}{path}.base_layer.bias"] = merged
                self.bias = "lora_only"
                self.saved.append(name)
            elif path not in self.modules_to_save:
                self._save_module(path, changed)

    def factorize(self, rank: int) -> None:
        """A and B for every linear weight that changed, or whose bias did.

        Raises:
            RecipeError: nothing changed at all.
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
            raise RecipeError(WHERE, "the merged model is its base: there is nothing to store")
        if not self.factors:  # peft takes no adapter without a LoRA in it
            self._add_nothing(next(iter(self.linear)), generator)

    def config(self, name: str) -> dict[str, Any]:
        """adapter_config.json: the commonest rank, and patterns for the others. α = r everywhere: B·A is ΔW."""
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
        """Modules by the last part of their names where that means no others, else by the whole path."""
        leaves = {path.rpartition(".")[2] for path in paths}
        meant = {leaf: {path for path in self.modules if path.rpartition(".")[2] == leaf} for leaf in leaves}
        short = {leaf for leaf in leaves if meant[leaf] <= set(paths)}
        return sorted({leaf if (leaf := path.rpartition(".")[2]) in short else path for path in paths})

    def _module(self, tensor: str) -> str | None:
        """The live module whose parameter a tensor is; None where it is only a part of one."""
        place = self.places[tensor]
        return None if place.index else place.parameter.rpartition(".")[0]

    def _save_module(self, path: str, changed: Mapping[str, torch.Tensor]) -> None:
        """A module with all of its own parameters, as peft expects it; tied embeddings with the head that is theirs."""
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

    def _changed_whole(self, op: TensorOp) -> torch.Tensor | None:
        """(*shape) float32: a merged tensor that no LoRA reaches, where it differs from the base's."""
        if op.tensor in self.linear:
            return None
        delta, _ = self._delta(op)
        return None if delta is None else self.base.load(op.tensor).float() + delta

    def _delta(self, op: TensorOp) -> tuple[torch.Tensor | None, float]:
        """(*shape) float32: merged − base, or None within rounding errors; and how large those are."""
        merged, theta = apply(op, self._load, torch.float32), self.base.load(op.tensor).float()
        if not extremes(merged).isfinite().all():
            raise CandidateError("materialize", not_finite(op.tensor, "float32"))
        noise = EPS / 2 * float(theta.square().mean().sqrt())  # of a sum or two, each rounded to float32
        delta = merged - theta
        return (None if torch.allclose(merged, theta, rtol=4 * EPS, atol=8 * noise) else delta), noise

    def _load(self, source: Input) -> torch.Tensor:
        return self.checkpoints[source.reference].load(source.tensor)


def _live_model(base: Checkpoint) -> torch.nn.Module:
    """The modules of the base without their weights: which of them are linear, and how those store theirs."""
    kind = getattr(transformers, base.shape.architecture)
    with torch.device("meta"):
        model: torch.nn.Module = kind(kind.config_class.from_dict(dict(base.config)))
    return model


def _sizes(names: list[str], tensors: Mapping[str, torch.Tensor]) -> str:
    """The first names with their sizes in float32, and the sum."""
    sizes = {name: tensors[name].numel() * 4 for name in names}
    shown = ", ".join(f"{name} ({_bytes(size)})" for name, size in list(sizes.items())[:8])
    more = f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    return f"{shown}{more}, {_bytes(sum(sizes.values()))} in all"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
