"""Provenance of an exported recipe: the section `provenance` of its file, with everything that `verify` compares.

It states where a recipe comes from and what it gave there, as in SLSA's provenance: tool, inputs and result by digest.
A recipe denotes the same model without it, so it is no part of the recipe's identity.
"""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from evosearch.documents import Document
from evosearch.recipe.schema import Reference

KEY = "provenance"
MAX_ITEMS = 10_000_000  # values of one task; bounds what a damaged file can expand to

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=2000)]


class RecordedInput(Document):
    """A model that the recipe uses, with digests of its weights and files."""

    model: Reference
    """The model, as the recipe names it."""
    content_sha256: Digest | None = None
    """Digest of its weights, independent of how they are split into files; none for a model used for its tokenizer."""
    files: Mapping[str, Digest] = Field(default_factory=dict)
    """File → sha256 of its config and tokenizer files."""


class RecordedSuite(Document):
    """The suite that the scores were measured with."""

    name: Text
    """Name of the suite."""
    digest: Digest
    """Digest of the suite's content."""
    file: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """The suite's file, relative to the recipe's."""
    items: Mapping[str, Mapping[str, Digest]] = Field(default_factory=dict)
    """Split → task → digest of its items."""


class RecordedTask(Document):
    """The suite's metric of one task."""

    metric: Text
    """The metric."""
    value: float
    """Mean over items."""
    stderr: float
    """Standard error of the mean."""
    n: int
    """Number of items."""


class RecordedInterval(Document):
    """A score with its two-sided 95% interval."""

    value: float
    """The score, in points."""
    lower: float
    """Lower bound."""
    upper: float
    """Upper bound."""
    n: int
    """Number of items."""


class RecordedScore(RecordedInterval):
    """The recipe's score on one split."""

    tasks: Mapping[str, RecordedTask] = Field(default_factory=dict)
    """Task → its metric."""
    baselines: Mapping[str, RecordedInterval] = Field(default_factory=dict)
    """Baseline → its score on the same items."""
    lm_eval: tuple[str, ...] = ()
    """Commands of lm-eval that repeat the metrics, run from the recipe's folder; `$MODEL` is the merged model."""
    values: Mapping[str, str] = Field(default_factory=dict)
    """Task → the metric of each item, packed; see `unpack`."""


class Provenance(Document):
    """Origin of an exported recipe, and the digests and scores that `evosearch verify` compares."""

    evosearch: Text
    """Version of evosearch that wrote the file."""
    date: Text
    """Date of the export, UTC."""
    search: Text
    """Name of the search."""
    search_id: Text
    """Digest of the search's spec."""
    candidate: Text
    """The candidate or baseline."""
    recipe_id: Digest
    """Id of the recipe with its models' weights."""
    weights_sha256: Digest | None = None
    """Digest of the merged weights."""
    inputs: tuple[RecordedInput, ...] = ()
    """The models, also those of nested recipes."""
    seeds: Mapping[str, int] = Field(default_factory=dict)
    """Seeds of the recipe's masks, of the optimizer, and of the suite's splits."""
    versions: Mapping[str, Text] = Field(default_factory=dict)
    """Package → version, where the weights were merged."""
    suite: RecordedSuite | None = None
    """The suite; none if nothing was scored."""
    scores: Mapping[str, RecordedScore] = Field(default_factory=dict)
    """Split → score."""
    test_openings: int | None = None
    """How often the test set has been opened, by all searches."""
    statements: tuple[Text, ...] = ()
    """Statements that qualify the scores."""
    tensors: Mapping[str, Digest] = Field(default_factory=dict)
    """Tensor → sha256 of its bytes in the merged weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain data without default values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def pack(values: Sequence[float]) -> str:
    """Pack the values of items: little-endian float64, deflated, in base64."""
    raw = struct.pack(f"<{len(values)}d", *values)
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def unpack(text: str) -> tuple[float, ...]:
    """Return the values that `pack` packed.

    Raises:
        ValueError: The text is not what `pack` returns, or holds too many values.
    """
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(base64.b64decode(text, validate=True), 8 * MAX_ITEMS)
    except zlib.error as exc:
        raise ValueError(str(exc)) from None
    if not inflate.eof or inflate.unused_data or len(raw) % 8:
        raise ValueError("incomplete or too many values")
    return struct.unpack(f"<{len(raw) // 8}d", raw)
