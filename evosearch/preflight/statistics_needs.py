"""Forecast of the statistics that a recipe's method needs of its models: work, and space in the cache."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints.cache.layout import STATISTICS
from evosearch.checkpoints.disk_space import size as shown
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.merging.registry import specs
from evosearch.moments.files import ITEM
from evosearch.moments.sampled_moments import MOST_ROWS, ModelMoments
from evosearch.preflight.disk_needs import Need
from evosearch.recipe.shapes import FISHER, GRAM, INPUTS
from evosearch.recipe.shapes import STATISTICS as KINDS
from evosearch.setup.models import Models

PASSES = {
    FISHER: 4,
    GRAM: 1,
    INPUTS: 1,
}  # forward passes that take as long; a backward pass with recomputed layers counts as three


@dataclass(frozen=True)
class StatisticsNeeds:
    """Statistics that are not in the cache yet.

    Attributes:
        note: In words; empty if there are none.
        bytes: Space in the cache, at most: layers that read the same inputs share a Gram matrix.
    """

    note: str
    bytes: int

    @property
    def needs(self) -> list[Need]:
        """What will be written to disk."""
        if not self.bytes:
            return []
        return [Need("statistics of the models", default_cache() / STATISTICS, float(self.bytes), "EVOSEARCH_CACHE")]


def statistics_needs(models: Models, methods: Iterable[str]) -> StatisticsNeeds:
    """Forecast the statistics of a recipe's models.

    Args:
        models: The models; their recipe names the sample.
        methods: Names of the merge methods that candidates may have.
    """
    sample = models.recipe.sample
    known = [specs()[name] for name in methods if name in specs()]
    kinds = dict.fromkeys(spec.statistic for spec in known if not spec.sequential)  # which is refused
    if sample is None:
        return StatisticsNeeds("", 0)
    tokens, found, total = models.samples[sample.key], list[str](), 0
    for kind in filter(None, kinds):
        named = models.recipe.references() if kind == INPUTS else models.recipe.parents
        missing = [one for one in map(models.checkpoints.__getitem__, named) if not _is_cached(one, sample.key, kind)]
        if missing:
            total += sum(_bytes(one, kind) for one in missing)
            count = f"{len(missing)} model{'s' if len(missing) != 1 else ''}"
            found.append(f"{KINDS[kind]} of {count} ({PASSES[kind]} forward passes' work)")
    if not found:
        return StatisticsNeeds("", 0)
    texts = f"{len(tokens):,} documents ({sum(map(len, tokens)):,} tokens)"
    space = f"they take at most {shown(total)} of the cache"
    return StatisticsNeeds(f"once on each node: {' and '.join(found)} over {texts} of recipe.sample; {space}", total)


def methods_of(template: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the merge methods that a recipe with search parameters may have."""
    written = template.get("merge_method")
    choices = written.get("choices", ()) if isinstance(written, Mapping) else (written,)
    return tuple(str(name) for name in choices)


def _is_cached(checkpoint: Checkpoint, sample: str, kind: str) -> bool:
    found = checkpoint.statistics[sample, kind]
    assert isinstance(found, ModelMoments)
    return found.file.is_file()


def _bytes(checkpoint: Checkpoint, kind: str) -> int:
    if kind == FISHER:
        return ITEM * sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    turned = 0 if checkpoint.family.transposed else 1  # the dimension of a weight's inputs
    named = [spec.name for spec in checkpoint.shape.tensors if spec.layer is not None]
    shapes = [checkpoint.tensors[name].shape for name in named]
    widths = [shape[turned] for shape in shapes if len(shape) == 2]
    return ITEM * sum(width * (MOST_ROWS if kind == INPUTS else width) for width in widths)
