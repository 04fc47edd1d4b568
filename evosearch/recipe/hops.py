"""Routes: the steps a routed model takes through the layers of its sources."""

from typing import Annotated

from pydantic import Field

from evosearch.documents import Document


class Hop(Document):
    """One step of a route: run `layer` of `model`, its input scaled by `scale`.

    With C_k the product of the scales of hops 1..k, hop k computes h ← h + F_k(h) / C_k.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    layer: Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
    scale: Annotated[float, Field(gt=0, strict=True)] = 1.0


class Routing(Document):
    """A route through the layers of one or more models of one width."""

    hops: Annotated[tuple[Hop, ...], Field(min_length=1)]
