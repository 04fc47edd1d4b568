"""Inventory of a node's cache: its entries, and the removal of those that were not used for longest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evosearch.checkpoints.cache import uses
from evosearch.checkpoints.cache.drafts import Draft, abandoned, remove
from evosearch.checkpoints.cache.layout import HASHES, KINDS
from evosearch.checkpoints.disk_space import parse_size
from evosearch.errors import CheckpointError

CEILING = "EVOSEARCH_CACHE_MAX"
BLOCK = 512  # unit of `st_blocks`


@dataclass(frozen=True)
class Entry:
    """One entry of a cache.

    Attributes:
        kind: Its folder in the cache, see `layout.py`.
        name: Its name there; `hashes` is one entry without a name.
        what: The model, as the last search named it; empty if unknown.
        source: Folder that it was copied from; empty if it was made here.
        bytes: Space on the disk.
        files: Number of files and folders.
        last_used_s: Time of the last use, in seconds since the epoch.
        in_use: Whether a process uses it.
    """

    kind: str
    name: str
    what: str
    source: str
    bytes: int
    files: int
    last_used_s: float
    in_use: bool


@dataclass(frozen=True)
class Inventory:
    """Content of a cache.

    Attributes:
        cache: Its folder.
        entries: All entries, the one used last first.
        draft_bytes: Space taken by drafts of killed processes.
        drafts: How many of these there are.
    """

    cache: str
    entries: tuple[Entry, ...]
    drafts: int
    draft_bytes: int

    @property
    def bytes(self) -> int:
        """Space taken by all entries."""
        return sum(entry.bytes for entry in self.entries)


@dataclass(frozen=True)
class Pruned:
    """What was removed from a cache.

    Attributes:
        removed: The entries, the one used first first.
        drafts: Number of drafts of killed processes.
        bytes: Space freed.
        left: What is left.
    """

    removed: tuple[Entry, ...]
    drafts: int
    bytes: int
    left: Inventory


def cache_ceiling() -> int | None:
    """Return the bytes that a cache may take, from $EVOSEARCH_CACHE_MAX; None if it is not set.

    Raises:
        CheckpointError: It is not a size.
    """
    text = os.environ.get(CEILING)
    return parse_size(text, CEILING) if text else None


def inventory(cache: Path) -> Inventory:
    """List a cache; a missing one is empty."""
    entries = sorted(_entries(cache), key=lambda entry: (-entry.last_used_s, entry.kind, entry.name))
    left = abandoned(cache)
    return Inventory(str(cache), tuple(entries), len(left), sum(_size(path)[0] for path in left))


def prune(cache: Path, max_bytes: int | None = None) -> Pruned:
    """Remove drafts of killed processes, and entries that no process uses until the rest fits.

    Entries are removed in the order of their last use. What is needed again is computed, copied or trained again.

    Args:
        cache: The cache.
        max_bytes: Space that may remain taken; entries in use remain in any case. Default: all entries remain.

    Raises:
        CheckpointError: An entry cannot be removed.
    """
    before = inventory(cache)
    for path in abandoned(cache):
        remove(path)
    taken, removed = before.bytes, list[Entry]()
    for entry in reversed(before.entries):
        if max_bytes is None or taken <= max_bytes:
            break
        if _remove(cache, entry):
            removed.append(entry)
            taken -= entry.bytes
    after = inventory(cache)
    freed = before.bytes + before.draft_bytes - after.bytes - after.draft_bytes
    return Pruned(tuple(removed), before.drafts - after.drafts, max(0, freed), after)


def _entries(cache: Path) -> Iterator[Entry]:
    for kind in KINDS:
        folder = cache / kind
        if kind == HASHES:
            found = [folder] if folder.is_dir() else []
        else:
            found = [path for path in _listed(folder) if not path.name.startswith(".")]
        for path in found:
            name = "" if kind == HASHES else path.name
            use = uses.read(cache, kind, name)
            try:
                last_s = use.last_s if use is not None else _written(path, kind)
            except FileNotFoundError:  # removed meanwhile
                continue
            taken, files = _size(path)
            what, source = (use.what, use.source) if use is not None else ("", "")
            yield Entry(kind, name, what, source, taken, files, last_s, uses.in_use(cache, kind, name))


def _written(path: Path, kind: str) -> float:
    """Return when an entry without a mark was written; for hashes, when one of them was last used."""
    files = [path, *(_listed(path) if kind == HASHES else ())]
    return max(file.stat().st_mtime for file in files)


def _remove(cache: Path, entry: Entry) -> bool:
    """Remove an entry unless a process uses it, or has used it since it was listed; return whether it is gone."""
    path = cache / entry.kind / entry.name
    with uses.removing(cache, entry.kind, entry.name, forget=True) as free:
        if not free:
            return False
        try:
            made = Draft(path.parent, path.name)  # removed from there, so that no part of it stays an entry
            try:
                path.rename(made.folder / path.name)
            finally:
                made.close()
        except FileNotFoundError:
            return True
        except OSError as error:
            what = f"cannot be removed: {error.strerror or error}"
            raise CheckpointError(str(path), what, next="Check who owns it, and its permissions") from None
    return True


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(path: Path) -> tuple[int, int]:
    """Return bytes on the disk and number of files of a file or folder; links are not followed."""
    taken, files, waiting = 0, 0, [str(path)]
    while waiting:
        place = waiting.pop()
        try:
            stat = os.lstat(place)
            taken, files = taken + stat.st_blocks * BLOCK, files + 1
            if os.path.isdir(place) and not os.path.islink(place):
                waiting += [entry.path for entry in os.scandir(place)]
        except OSError:  # removed meanwhile, or another user's
            continue
    return taken, files
