"""Routes: sequences of hops through the layers of one or more models."""

from itertools import accumulate
from operator import mul
from typing import Annotated

from pydantic import Field

from evosearch.documents import Document

MAX_HOPS = 10_000  # the longest route of the paper has a few hundred
MAX_GAIN = 1e6  # divided weights would overflow half precision above it


class Hop(Document):
    """One step of a route: run `layer` of `model` with its input scaled by `scale`.

    With C_k the product of the scales of hops 1..k, hop k computes h ← h + F_k(h) / C_k.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    """The model."""
    layer: Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
    """Index of the layer."""
    scale: Annotated[float, Field(gt=0, strict=True)] = 1.0
    """Factor of the input."""


class Routing(Document):
    """A route through the layers of one or more models of one width.

    Embeddings, final norm, head, config and tokenizer are those of the first hop's model. Every C_k must be in
    [1 / max_gain, max_gain].
    """

    hops: Annotated[tuple[Hop, ...], Field(min_length=1, max_length=MAX_HOPS)]
    """The hops, in order."""
    max_gain: Annotated[float, Field(ge=1, le=MAX_GAIN, strict=True)] = 8.0
    """Bound of every C_k and of its inverse."""

    def divisors(self) -> tuple[float, ...]:
        """Return C_k for every hop: the product of the scales up to it."""
        return tuple(accumulate((hop.scale for hop in self.hops), mul))
