"""Shell completion of search names, baselines and model references; `evosearch --install-completion` turns it on.

A shell waits for it at every press of Tab, so it looks at names of folders alone, and loads neither torch nor a ledger.
"""

import os
from pathlib import Path

BUILT_IN = ("base", "reverse", "sort", "deal", "median")  # of zoo:tiny
LEDGERS = ("ledger.db", "ledger.url")  # files by which the folder of a search is known
NOT_STAGES = ("export",)  # folders in it
HUB_FOLDER = "models--"  # `models--org--name`, in the hub's cache


def searches(incomplete: str) -> list[str]:
    """Return the names of searches in the runs folder, and of their stages, that begin with a text."""
    folder = Path(os.environ.get("EVOSEARCH_RUNS") or "runs")
    found: list[str] = []
    for run in _folders(folder, ""):
        if any((run / ledger).is_file() for ledger in LEDGERS):
            own = (each.name for each in _folders(run, "") if each.name not in NOT_STAGES)
            found += [run.name, *(f"{run.name}.{stage}" for stage in own)]
    return sorted(name for name in found if name.startswith(incomplete))


def models(incomplete: str) -> list[str]:
    """Return built-in models, models in the hub's cache, and folders, that begin with a text.

    After a `+` it is the adapter of a model that is completed.
    """
    if _after_scheme(incomplete):
        return [name for name in (f"tiny/{one}" for one in BUILT_IN) if name.startswith(incomplete)]
    model, plus, adapter = incomplete.rpartition("+")
    if plus:
        return [f"{model}+{found}" for found in models(adapter)]
    names = (*(f"zoo:tiny/{name}" for name in BUILT_IN), *_of_hub())
    found = [name for name in names if name.startswith(incomplete)]
    parent, slash, start = incomplete.rpartition("/")
    if incomplete.startswith("zoo:"):
        return found
    return found + [f"{parent}{slash}{folder.name}" for folder in _folders(Path(f"{parent}{slash}" or "."), start)]


def files_and_models(incomplete: str) -> list[str]:
    """Return models, and YAML files of recipes, that begin with a text."""
    parent, slash, start = incomplete.rpartition("/")
    folder = Path(f"{parent}{slash}" or ".")
    try:
        found = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml")]
    except OSError:
        found = []
    return models(incomplete) + [f"{parent}{slash}{name}" for name in found if name.startswith(start)]


def _after_scheme(incomplete: str) -> bool:
    """Whether bash, which ends words at colons, has taken `zoo:` off the word."""
    typed = os.environ.get("COMP_WORDS", "").split()
    return typed[-3:-1] == ["zoo", ":"] and typed[-1] == incomplete


def _of_hub() -> list[str]:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return [folder.name.removeprefix(HUB_FOLDER).replace("--", "/", 1) for folder in _folders(cache, HUB_FOLDER)]


def _folders(parent: Path, start: str) -> list[Path]:
    """Return the folders in a folder whose names begin with a text, by name; hidden ones only if it has a dot."""
    try:
        entries = sorted(parent.expanduser().iterdir())
    except OSError:
        return []
    named = (each for each in entries if each.name.startswith(start))
    return [each for each in named if (start or not each.name.startswith(".")) and each.is_dir()]
