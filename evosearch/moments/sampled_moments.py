"""Statistics of models over a recipe's sample: computed once, kept in the cache, and mapped from there.

A file is named by what it is a function of: the model's weights and config, the sample's tokens, the kind of statistic,
and the type of the arithmetic.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints.cache.layout import STATISTICS
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import Progress
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.evaluation.harness.harness import max_length_of
from evosearch.materialize.forward import settings
from evosearch.materialize.plan import statistics_key
from evosearch.materialize.skeleton import build, generation_folder
from evosearch.merging.registry import specs
from evosearch.moments.files import Moments, check_finite, computed_once, sums
from evosearch.moments.gram_matrices import add_gram_matrices, keep_inputs, linear_layers, sharing, width
from evosearch.moments.merge_moments import MergeMoments, ParentMoments
from evosearch.moments.sample_tokens import Tokens, digest_of, read_tokens
from evosearch.moments.squared_gradients import add_squared_gradients, draws_of
from evosearch.recipe.blocks import blocks
from evosearch.recipe.sample import Sample
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import FISHER, GRAM, INPUTS

MOST_ROWS = 4096  # tokens whose inputs are kept: 12 GB for Llama's shapes of 7B
KINDS = (FISHER, GRAM, INPUTS)  # those of one model
VERSION = 1  # of the computation; a change leaves older files unused


@dataclass(frozen=True)
class SampledMoments:
    """Samples and the statistics of models over them; see `materialize.inputs.Samples`.

    Attributes:
        cache: The node's cache folder.
        device: `auto`, `cpu` or `cuda`: where models are run.
        progress: Called with a description and the completed fraction.
        known: Key of a sample → its tokens; other samples are read from their files.
    """

    cache: Path
    device: str = "auto"
    progress: Progress | None = None
    known: dict[str, Tokens] = field(default_factory=dict)

    def digest(self, sample: Sample, donor: Checkpoint) -> str:
        """Return the sha256 (hex) of a sample's tokens, by the donor's tokenizer.

        Raises:
            InputError: See `read_tokens`.
        """
        return digest_of(self.tokens(sample, donor))

    def tokens(self, sample: Sample, donor: Checkpoint) -> Tokens:
        """Return the sample's tokens, by the donor's tokenizer; they are read once.

        Raises:
            InputError: See `read_tokens`.
        """
        if sample.key not in self.known:
            tokenizer = load_tokenizer(donor.tokenizer_folder)
            length = max_length_of(settings(donor.config, f"{donor.folder}/{CONFIG}"), tokenizer)
            self.known[sample.key] = read_tokens(sample, tokenizer, length)
        return self.known[sample.key]

    def attach(self, sample: Sample, checkpoints: Mapping[str, Checkpoint], recipe: Recipe | None = None) -> None:
        """Give every checkpoint its statistics over a sample. Nothing is read or computed before they are used.

        With a recipe of a sequential method, its parents have the statistics of its merge too.
        """
        donor = next(iter(checkpoints.values()))
        for checkpoint in checkpoints.values():
            own = {(sample.key, kind): ModelMoments(self, sample, kind, checkpoint, donor) for kind in KINDS}
            checkpoint.statistics = {**checkpoint.statistics, **own}
        spec = specs().get(recipe.merge_method or "") if recipe is not None else None
        if recipe is None or spec is None or not spec.sequential:
            return
        read = partial(self.tokens, sample, donor)
        merge = MergeMoments(recipe, dict(checkpoints), read, self.cache, self.chosen_device, self.report)
        entries = [entry for block in blocks(recipe) for entry in block.entries]
        for index, entry in enumerate(entries):
            parent = checkpoints[entry.model]
            parent.statistics = {**parent.statistics, statistics_key(recipe, spec): ParentMoments(merge, index)}

    def report(self, what: str, fraction: float) -> None:
        """Report progress."""
        if self.progress:
            self.progress(what, fraction)

    @property
    def chosen_device(self) -> torch.device:
        """The device that models are run on."""
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device)


@dataclass(frozen=True)
class ModelMoments:
    """One statistic of one model over one sample."""

    owner: SampledMoments = field(repr=False)
    sample: Sample
    kind: str
    checkpoint: Checkpoint = field(repr=False)
    donor: Checkpoint = field(repr=False)

    def has(self, name: str) -> bool:
        """Return whether there is a statistic at a tensor; see `checkpoints.reader.Statistics`."""
        return self._moments.has(name)

    def load(self, name: str) -> torch.Tensor:
        """Return the statistic at a tensor: float32 on the CPU, memory-mapped."""
        return self._moments.load(name)

    @property
    def file(self) -> Path:
        """The file of the statistic, which need not exist yet."""
        left_out = ("_name_or_path", "transformers_version")
        config = {key: value for key, value in self.checkpoint.config.items() if key not in left_out}
        parts = [
            VERSION,
            self.kind,
            self.checkpoint.content_sha256(),
            digest_of(self._tokens),
            str(self._dtype),
            config,
        ]
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self.owner.cache / STATISTICS / f"{name}.safetensors"

    @cached_property
    def _moments(self) -> Moments:
        """The statistic, from the cache unless it is missing there.

        Raises:
            CheckpointError: The model cannot be built or run, or the cache cannot be written.
        """
        what = f"{self.kind} of {self.checkpoint.reference}"
        return computed_once(self.owner.cache, self.file, what, self.owner.report, self._compute)

    def _compute(self, file: Path) -> None:
        model, places = self._built(), self._places
        done = partial(self.owner.report, f"computing {self.kind} statistics of {self.checkpoint.reference}")
        if self.kind == FISHER:
            shapes = {name: info.shape for name, info in self.checkpoint.tensors.items()}
            with sums(file, shapes, {}) as totals:
                add_squared_gradients(model, self._tokens, totals, places, draws_of(digest_of(self._tokens)), done)
                check_finite(totals, self.checkpoint.reference)
            return
        layers = linear_layers(model, places)
        first = sharing(model, layers, self._tokens[0])
        rows = min(MOST_ROWS, sum(map(len, self._tokens))) if self.kind == INPUTS else 0
        matrices = {n: (rows or width(layers[n]), width(layers[n])) for n, own in first.items() if n == own}
        run = keep_inputs if self.kind == INPUTS else add_gram_matrices
        with sums(file, matrices, {name: own for name, own in first.items() if name != own}) as totals:
            run(model, self._tokens, totals, layers, done)
            check_finite(totals, self.checkpoint.reference)

    def _built(self) -> Any:
        one = self.checkpoint
        model = build(generation_folder(one), one.config, one.tensors, one.load, self._dtype)
        return model.to(self.owner.chosen_device)

    @property
    def _places(self) -> dict[str, Any]:
        one = self.checkpoint
        return {name: one.family.placement(name, one.config) for name in one.tensors}

    @property
    def _dtype(self) -> torch.dtype:
        """The type that the model runs in: its own on a GPU; bfloat16 is slow on a CPU."""
        return self.checkpoint.dtype if self.owner.chosen_device.type == "cuda" else torch.float32

    @property
    def _tokens(self) -> Tokens:
        return self.owner.tokens(self.sample, self.donor)
