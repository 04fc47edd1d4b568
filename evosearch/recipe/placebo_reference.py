"""References to placebos: models whose task vectors are random, with the norms of a real model's.

`placebo:MODEL?base=BASE&seed=SEED` is BASE plus noise; `materialize.random_vectors` defines it. Searches that test
whether a result needs the real task vectors replace their parents by such references.
"""

from dataclasses import dataclass

PREFIX = "placebo:"
BASE, SEED = "?base=", "&seed="


@dataclass(frozen=True)
class PlaceboReference:
    """A parsed reference.

    Attributes:
        model: Reference of the model whose task vectors are replaced.
        base: Reference of the model that they are relative to.
        seed: Seed of the noise.
    """

    model: str
    base: str
    seed: int

    def __str__(self) -> str:
        return f"{PREFIX}{self.model}{BASE}{self.base}{SEED}{self.seed}"


def parse(reference: str) -> PlaceboReference | None:
    """Parse a reference; None if it is not one of a placebo."""
    if not reference.startswith(PREFIX):
        return None
    rest, _, seed = reference.removeprefix(PREFIX).rpartition(SEED)
    model, _, base = rest.rpartition(BASE)
    return PlaceboReference(model, base, int(seed)) if model and base and seed.isdecimal() else None
