"""What a model's card says of its licence and of what it was made of: the YAML before the text of README.md.

A card is written by whoever uploaded the model: what is read here decides messages, and `promotion.licences`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import CheckpointError

CARD = "README.md"
MAX_BYTES = 2**20  # of a card that is read; its front matter is a few hundred
FENCE = "---"
OTHER = "other"  # the hub's word for a licence that it has no name for: `license_name` says which


@dataclass(frozen=True)
class Card:
    """A card's front matter, as far as it is of use here.

    Attributes:
        licences: by the hub's names (`apache-2.0`), lower case; of `other` what `license_name` says. Empty: not stated.
        bases: hub ids of the models that it was made of.
        note: why the card could not be read, where there is one.
    """

    licences: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    note: str = ""

    @property
    def licence(self) -> str | None:
        """The licences as one text; None: not stated."""
        return ", ".join(self.licences) or None

    def allows(self, accepted: Collection[str]) -> bool:
        """Whether it names a licence, and none beside the accepted ones."""
        known = {name.lower() for name in accepted}
        return bool(self.licences) and set(self.licences) <= known


def card_of(folder: Path) -> Card:
    """The card of a model's or an adapter's folder; an empty one where there is none, or none that can be read."""
    path = folder / CARD
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_BYTES)
    except OSError:
        return Card()
    front = _front(text)
    if not front:
        return Card()
    try:
        data = documents.parse(front, str(path), CheckpointError)
    except CheckpointError as error:
        return Card(note=f"{error.where}: {error.what}")
    licences = [name.lower() for name in _texts(data.get("license"))]
    named = [name.lower() for name in _texts(data.get("license_name"))]
    licences = [name for one in licences for name in (named if one == OTHER and named else [one])]
    return Card(tuple(dict.fromkeys(licences)), tuple(_texts(data.get("base_model"))))


def _front(text: str) -> str | None:
    """What stands between the fences at the beginning; None where there are none."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != FENCE:
        return None
    end = next((index for index, line in enumerate(lines[1:], start=1) if line.strip() == FENCE), None)
    return None if end is None else "\n".join(lines[1:end])


def _texts(value: Any) -> list[str]:
    """One text or a list of them, without what is neither."""
    given = value if isinstance(value, list) else [value]
    return [text.strip() for text in given if isinstance(text, str) and text.strip()]
