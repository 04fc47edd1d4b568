"""A search of another tool in evosearch's terms, and helpers that the readers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from evosearch import documents
from evosearch.documents import Document, join
from evosearch.errors import SpecError

D = TypeVar("D", bound=Document)
VALIDATION, TEST = 200, 500  # documents of the splits that the other tools do not have
SEARCH = 100  # documents of the search split, if the file limits none
SPLITS_WHY = (
    "splits: the search sees only `search`; finalists are chosen on `validation` and compared with baselines on "
    "`test`, since the best of many candidates on the documents that chose it is partly lucky"
)


@dataclass(frozen=True)
class Imported:
    """A search of another tool as the parts of a search spec.

    Attributes:
        tool: Name of the tool.
        name: Name of the search.
        recipe: The recipe with holes.
        optimizer: The spec's `optimizer`.
        budget: The spec's `budget`.
        suite: The suite, as its own document.
        changes: What changes and why, one sentence each, with the key that it is about.
        more: Further keys of the spec.
    """

    tool: str
    name: str
    recipe: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    budget: Mapping[str, Any]
    suite: Mapping[str, Any]
    changes: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)


class Surroundings(Protocol):
    """What a reader may ask about the files and models that a document names."""

    def layers(self, model: str) -> int:
        """Return the number of layers of a model.

        Raises:
            CheckpointError: Its config cannot be read.
        """
        ...

    def reference(self, model: str) -> str:
        """Return a model's reference as the new spec writes it."""
        ...

    def document(self, name: str) -> dict[str, Any]:
        """Return the YAML mapping in a file that the document names, relative to it.

        Raises:
            SpecError: It cannot be read.
        """
        ...

    def task_folder(self, name: str) -> str | None:
        """Return a folder of task files as the new suite writes it; None if there is no such folder."""
        ...


def known_part(model: type[D], data: Any, where: str, changes: list[str]) -> D:
    """Validate the keys of a document that a model knows; the others are reported as changes.

    Raises:
        SpecError: The document is not a mapping, or a value is invalid.
    """
    if not isinstance(data, Mapping):
        raise SpecError(where, f"got {data!r}", "A mapping of keys to values")
    changes += [f"{key}: not known, left out" for key in data if key not in model.model_fields]
    own = {key: value for key, value in data.items() if key in model.model_fields}
    return documents.validate(model, own, where, SpecError)


def reference_of(value: Any, where: str) -> str:
    """Return mergekit's reference of a model, text or mapping, as text: `path@revision+adapter`.

    Raises:
        SpecError: It is neither.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        parts = [_path(value[key], join(where, key)) for key in ("model", "lora") if value.get(key)]
        if parts:
            return "+".join(parts)
    raise SpecError(where, f"got {value!r}", "A model: a folder, or a hub id")


def _path(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        revision = value.get("revision")
        return f"{value['path']}@{revision}" if revision else str(value["path"])
    raise SpecError(where, f"got {value!r}", "A path, or {path: …, revision: …}")


def varied(hole: Mapping[str, Any], groups: int, filters: Sequence[str] = (), smooth: bool = False) -> Any:
    """Return a setting with a hole for every run of layers and every filter.

    Args:
        hole: The hole of one number.
        groups: Number of runs of layers, or of points of a gradient.
        filters: Substrings of tensor names with numbers of their own; one more is for all other tensors.
        smooth: Interpolate over depth.
    """
    made = dict(hole)
    if groups > 1:
        made |= (
            {"per": "gradient", "points": groups} if smooth else {"per": "group", "groups": groups, "ends": "shared"}
        )
    if not filters:
        return made
    return [*({"filter": pattern, "value": dict(made)} for pattern in filters), {"value": made}]
