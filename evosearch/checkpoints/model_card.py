"""Licence and base models from a model card: the YAML front matter of README.md.

Cards are written by the model's uploader, so they affect only messages and the check of `promotion.licences`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import CheckpointError
from evosearch.untrusted import open_file, present

CARD = "README.md"
MAX_BYTES = 2**20  # maximum read from a card; front matter takes a few hundred
FENCE = "---"
OTHER = "other"  # the hub's value for unlisted licences; `license_name` then has the name


@dataclass(frozen=True)
class Card:
    """The fields of a model card that evosearch uses.

    Attributes:
        licences: The hub's names (`apache-2.0`) in lower case, or `license_name` for `other`; empty if not stated.
        bases: Hub ids of its base models.
        note: Reason why the card could not be parsed; empty if it could.
    """

    licences: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    note: str = ""

    @property
    def licence(self) -> str | None:
        """The licences as one string; None if not stated."""
        return ", ".join(self.licences) or None

    def allows(self, accepted: Collection[str]) -> bool:
        """Return whether the card states a licence and all of its licences are accepted."""
        known = {name.lower() for name in accepted}
        return bool(self.licences) and set(self.licences) <= known


def card_of(folder: Path) -> Card:
    """Return the card of a model's or adapter's folder; empty if it is missing or invalid."""
    path = folder / CARD
    if not present(path):
        return Card()
    try:
        with open_file(path, CheckpointError, folder) as file:
            text = file.read(MAX_BYTES).decode(errors="replace")
    except CheckpointError as error:
        return Card(note=f"{error.where}: {error.what}")
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
    """Return the front matter between the fences at the beginning; None if there is none."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != FENCE:
        return None
    end = next((index for index, line in enumerate(lines[1:], start=1) if line.strip() == FENCE), None)
    return None if end is None else "\n".join(lines[1:end])


def _texts(value: Any) -> list[str]:
    """Return a string or a list of strings as a list; other values are dropped."""
    given = value if isinstance(value, list) else [value]
    return [text.strip() for text in given if isinstance(text, str) and text.strip()]
