"""Arguments that the public functions share: paths, references of models, watchers."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from evosearch.search.progress import Watcher

PathLike: TypeAlias = str | os.PathLike[str]


def reference(model: PathLike) -> str:
    """Return the reference of a model; a Path("./base") is just "base", which could be a hub id."""
    return model if isinstance(model, str) else str(Path(model).absolute())


def as_given(model: PathLike) -> str:
    """Return the reference of a model, where a relative path stays relative: a spec can be moved with its models."""
    return model if isinstance(model, str) else os.path.join(os.curdir, model)


def watching(watcher: "Watcher | None") -> "Watcher":
    """Return the watcher, or one that shows nothing."""
    from evosearch.search.progress import Silent

    return Silent() if watcher is None else watcher
