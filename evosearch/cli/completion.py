"""Shell completion of search names and model references; `evosearch --install-completion` turns it on."""

import os
from pathlib import Path

BUILT_IN = ("base", "reverse", "sort", "deal", "median")  # of zoo:tiny, without loading torch


def searches(incomplete: str) -> list[str]:
    """Return the names of searches in the runs folder that begin with a text."""
    folder = Path(os.environ.get("EVOSEARCH_RUNS") or "runs")
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith(incomplete))


def models(incomplete: str) -> list[str]:
    """Return built-in models, and folders with a model or an adapter, that begin with a text."""
    found = [f"zoo:tiny/{name}" for name in BUILT_IN if f"zoo:tiny/{name}".startswith(incomplete)]
    parent, _, start = incomplete.rpartition("/")
    folder = Path(parent or ("/" if incomplete.startswith("/") else "."))
    if folder.is_dir():
        prefix = incomplete[: len(incomplete) - len(start)]
        found += [f"{prefix}{path.name}" for path in sorted(folder.glob(f"{start}*")) if path.is_dir()]
    return found
