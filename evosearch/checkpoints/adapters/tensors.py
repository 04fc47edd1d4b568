"""Tensors of a LoRA adapter, and how they change tensors of the base. The formulas are in `adapted_model`."""

from dataclasses import dataclass

import torch

from evosearch.checkpoints.adapters.adapter_config import AdapterConfig
from evosearch.checkpoints.digest import DTYPES
from evosearch.checkpoints.families.registry import Placement
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tensor_files import TensorFile
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import Place

PREFIX = "base_model.model."
# Suffix of a stored name → role in its module
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass(frozen=True)
class Change:
    """Change of one tensor of the base."""

    base: Checkpoint
    file: TensorFile
    name: str  # of the tensor in the base
    index: tuple[int | slice, ...]  # slice of the live parameter that is this tensor
    dtype: torch.dtype
    replacement: str | None  # stored name of the tensor that replaces the base's
    a: str | None
    b: str | None
    magnitude: str | None
    scale: float
    transposed: bool  # the weight is (in, out), as in Conv1D and embeddings: transpose B·A, take norms of columns

    def make(self) -> torch.Tensor:
        """Compute the changed tensor, in `dtype`."""
        with torch.no_grad():
            theta = (
                self.base.load(self.name) if self.replacement is None else self.file.load(self.replacement)[self.index]
            )
            theta = theta.to(self.dtype)
            if self.a is None or self.b is None:
                return theta
            a, b = (self.file.load(key).to(self.dtype) for key in (self.a, self.b))  # (r, in), (out, r)
            delta = b @ a  # (out, in)
            delta = (delta.T if self.transposed else delta) * self.scale
            changed = theta + delta[self.index]  # θ + scale · B·A
            if self.magnitude is None:
                return changed
            dim = 0 if self.transposed else 1
            norms = torch.linalg.norm(changed, dim=dim)  # (out,)
            factor = self.file.load(self.magnitude).to(self.dtype).reshape(-1) / norms
            return changed * factor.unsqueeze(dim)  # m · (θ + ΔW) / ‖θ + ΔW‖   (Liu et al. 2024, eq. 5)

    @property
    def is_low_rank(self) -> bool:
        """Whether the change is scale · B·A alone, of a complete linear weight."""
        embedding = self.a is not None and self.a.endswith("lora_embedding_A")
        others = (self.replacement, self.magnitude, self.index)
        return self.a is not None and self.b is not None and not embedding and not any(others)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (r, in) and scale · B (out, r) in `dtype`; only of a change of low rank."""
        assert self.a is not None
        assert self.b is not None
        return self.file.load(self.a).to(self.dtype), self.file.load(self.b).to(self.dtype) * self.scale

    def described(self) -> list[object]:
        """Return the config settings that determine the changed values."""
        return [self.name, self.scale if self.a else None, self.magnitude is not None]


class AdapterTensors:
    """The tensors of an adapter, grouped by the tensors they change."""

    def __init__(self, base: Checkpoint, config: AdapterConfig, file: TensorFile) -> None:
        self.base, self.config, self.file = base, config, file
        places = {name: base.family.placement(name, base.config) for name in base.tensors}
        self.live: dict[str, list[tuple[str, Placement]]] = {}  # live parameter → stored tensors it consists of
        for name, place in places.items():
            self.live.setdefault(place.parameter, []).append((name, place))
        for name in base.tensors:  # adapters of older transformers use the names on disk
            self.live.setdefault(name, [(name, Placement(name))])
        copies = base.family.tied if base.shape.tied_embeddings else {}
        self.tied = {base.family.placement(copy, base.config).parameter: name for copy, name in copies.items()}
        self.parts: dict[str, dict[str, str]] = {}  # module → role → stored name
        self.replacements: dict[str, str] = {}  # live parameter → stored name
        for stored in file.names():
            self._sort(stored)

    def changes(self) -> dict[str, Change]:
        """Return tensor of the base → its change.

        Raises:
            CheckpointError: Tensors are missing, unexpected, or do not fit the base.
        """
        self._check_complete()
        self._check_tied()
        changes: dict[str, Change] = {}
        targets = {f"{module}.weight": module for module in self.parts}
        for parameter in dict.fromkeys((*self.replacements, *targets)):
            if parameter in self.tied:
                continue  # equals the embeddings, see `_check_tied`
            for name, place in self.live[parameter]:
                changes[name] = self._change(name, place, parameter, targets.get(parameter))
        if not changes:
            raise self._error("no tensors", next="Download or copy the adapter again")
        return changes

    def _sort(self, stored: str) -> None:
        info, path = self.file.info(stored), stored.removeprefix(PREFIX)
        if info.dtype not in DTYPES:
            raise self._error(f"tensor '{stored}' is stored as {info.dtype}", f"One of {', '.join(DTYPES)}")
        if any(inner in stored for inner in (".modules_to_save.", ".original_module.")):
            return  # with `bias: all`, peft stores the tensors of its wrappers twice and ignores these itself
        end = next((end for end in _PARTS if path.endswith(end)), None)
        if end is None and ".lora_" in path:
            raise self._error(f"tensor '{stored}' is not part of a supported LoRA", f"M{', M'.join(_PARTS)}")
        # `base_layer`: a targeted embedding or a trained bias, saved together with its A and B
        parameter = f"{path.removesuffix(end)}.weight" if end else path.replace(".base_layer.", ".")
        if parameter not in self.live and parameter not in self.tied:
            what = f"tensor '{stored}' is for '{parameter}', which {self.base.reference} does not have"
            advice = f"It was trained on '{self.config.base_name}'" if self.config.base_name else None
            raise self._error(what, f"Modules of {self.base.shape.architecture}, after '{PREFIX}'", advice)
        if end:
            self.parts.setdefault(path.removesuffix(end), {})[_PARTS[end]] = stored
        else:
            self.replacements[parameter] = stored

    def _change(self, name: str, place: Placement, parameter: str, module: str | None) -> Change:
        parts = self.parts.get(module, {}) if module else {}
        embedding = "embedding_a" in parts
        a, b = (parts.get(f"embedding_{part}" if embedding else part) for part in ("a", "b"))
        # like peft, use the type of the layer and ignore `fan_in_fan_out`
        conv = self.base.family.transposed and self.base.shape.by_name[name].place is Place.LAYER
        replacement = self.replacements.get(parameter)
        used = [self.base.tensors[name].dtype] if replacement is None else []
        used += [self.file.info(key).dtype for key in (replacement, a, b) if key]
        dtype = torch.float64 if "F64" in used else torch.float32
        scale = self.config.scale_of(module) if module else 1.0
        change = Change(
            *(self.base, self.file, name, place.index, dtype, replacement, a, b, parts.get("magnitude"), scale),
            transposed=conv or embedding,
        )
        self._check_shapes(change, module)
        return change

    def _check_shapes(self, change: Change, module: str | None) -> None:
        expected = self.base.tensors[change.name].shape
        if change.replacement is not None:
            self._check_fits(change.replacement, self.file.info(change.replacement).shape, change.index, expected)
        if module is None or change.a is None or change.b is None:
            return
        rank, a, b = self.config.rank_of(module), self.file.info(change.a).shape, self.file.info(change.b).shape
        for key, shape, dim in ((change.a, a, 0), (change.b, b, 1)):
            if len(shape) != 2 or shape[dim] != rank:
                allowed = f"Rank {rank}, as {self.config.where.name} says for '{module}'"
                raise self._error(f"'{key}' is {_by(shape)}", allowed, "Check that the two files belong together")
        delta = (a[1], b[0]) if change.transposed else (b[0], a[1])
        self._check_fits(change.b, delta, change.index, expected)
        if change.magnitude is not None:
            shape = self.file.info(change.magnitude).shape
            if change.index:
                raise self._error(f"DoRA on '{change.name}', a slice of a layer's weight, is not supported")
            if torch.Size(shape).numel() != b[0]:
                raise self._error(f"'{change.magnitude}' is {_by(shape)}", f"One number per output: {b[0]}")

    def _check_fits(
        self, key: str, shape: tuple[int, ...], index: tuple[int | slice, ...], expected: tuple[int, ...]
    ) -> None:
        try:
            found = tuple(torch.empty(shape, device="meta")[index].shape)
        except IndexError:
            found = shape
        if found != expected:
            what = f"'{key}' gives {_by(found)}, but {self.base.reference} has {_by(expected)}"
            next = "An adapter that changed the vocabulary cannot be applied" if found[1:] == expected[1:] else None
            raise self._error(what, next=next)

    def _check_complete(self) -> None:
        for module, parts in self.parts.items():
            embedding = "embedding_a" in parts or "embedding_b" in parts
            wanted = ["embedding_a", "embedding_b"] if embedding else ["a", "b"]
            for part in [*wanted, *(["magnitude"] if self.config.dora else [])]:
                if part not in parts:
                    end = next(end for end, meaning in _PARTS.items() if meaning == part)
                    raise self._missing([f"{PREFIX}{module}{end}"])
            if "magnitude" in parts and not self.config.dora:
                raise CheckpointError(
                    f"{self.config.where}: use_dora", f"not set, though '{parts['magnitude']}' is stored", "true"
                )
        if self.config.complete:
            modules = (name.removesuffix(".weight") for name, found in self.live.items() if self._linear(name, found))
            missing = [module for module in modules if self.config.matches(module) and module not in self.parts]
            if missing:
                raise self._missing([f"{PREFIX}{module}.lora_A.weight" for module in missing])
        if self.parts and not self.config.targets_one_of(self.parts):
            what, allowed = "names no module that the adapter has", f"Modules such as '{next(iter(self.parts))}'"
            raise CheckpointError(f"{self.config.where}: target_modules", what, allowed)
        for saved in self.config.saved:
            paths = (parameter.rpartition(".")[0] for parameter in self.replacements)
            if not any(path == saved or path.endswith(f".{saved}") for path in paths):
                raise self._missing([f"{PREFIX}….{saved}.weight"])

    def _linear(self, parameter: str, found: list[tuple[str, Placement]]) -> bool:
        """Return whether a live parameter is the weight of a linear module in a layer (not of head or embeddings)."""
        name, place = found[0]
        return (
            parameter.endswith(".weight")
            and place.parameter == self.base.family.placement(name, self.base.config).parameter
            and len(self.base.tensors[name].shape) == 2
            and self.base.shape.by_name[name].place is Place.LAYER
        )

    def _check_tied(self) -> None:
        """Reject separate changes of embeddings and head if the base has one tensor for both."""
        advice = "Untie them in the base first (peft: merge_and_unload, save_pretrained)"
        for head, embeddings in self.tied.items():
            original = self.base.family.placement(embeddings, self.base.config).parameter
            for parameter in (head, original):
                if parameter.removesuffix(".weight") in self.parts:
                    what = f"LoRA on '{parameter.removesuffix('.weight')}', which shares its weight with the " + (
                        "embeddings" if parameter == head else "output head"
                    )
                    raise self._error(what, "LoRA on layers, where tie_word_embeddings is true", advice)
            stored = [self.replacements.get(parameter) for parameter in (original, head)]
            if stored == [None, None]:
                continue
            pair = [self.file.load(key) for key in stored if key]
            if len(pair) < 2 or pair[0].shape != pair[1].shape or not torch.equal(*pair):
                what = f"'{original}' and '{head}' differ, but the base has one tensor for both"
                raise self._error(what, "Both tensors, with equal values", advice)

    def _missing(self, names: list[str]) -> CheckpointError:
        more = f" (and {len(names) - 1} more)" if names[1:] else ""
        next = f"{self.config.where.name} requires it. Download or copy the adapter again"
        return self._error(f"tensor '{names[0]}' is missing{more}", next=next)

    def _error(self, what: str, allowed: str | None = None, next: str | None = None) -> CheckpointError:
        return CheckpointError(str(self.file.path), what, allowed, next)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
