"""Loader of third-party plugins, which are registered as entry points."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from evosearch.errors import InputError


def load_entry_points(group: str, error: type[InputError] = InputError) -> Iterator[tuple[str, object]]:
    """Import the object of every installed entry point of a group, sorted by name.

    Args:
        group: Name of the group, such as `evosearch.families`.
        error: Class of the error to raise.

    Yields:
        Source and object of each entry point. The source names the entry point and its distribution, for use as the
        `where` of errors about the object.

    Raises:
        error: An entry point cannot be imported.
    """
    found = entry_points(group=group)
    for point in sorted(found, key=lambda point: (point.name, point.value)):
        source = f"entry point '{point.name}' of {group} (from {_distribution(point)})"
        try:
            loaded = point.load()
        except Exception as exc:  # importing third-party code can raise anything
            what = f"cannot load '{point.value}': {type(exc).__name__}: {exc}"
            raise error(source, what, next=f"Fix or uninstall {_distribution(point)}") from exc
        yield source, loaded


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
