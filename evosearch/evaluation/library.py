"""Where lm-eval's own tasks lie, without lm-eval's index of them.

Indexing the whole library takes lm-eval 14 to 25 seconds. A suite names a handful of tasks: a scan of the YAML files
for the names (a second) finds their folders, and only those are indexed.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAME = re.compile(rb"^(?:task|group):[ \t]*['\"]?([^\s'\"#\[\]{}]+)", re.MULTILINE)


@cache
def library_files() -> Mapping[str, Path]:
    """Name of a task or group of lm-eval's library → the YAML file that defines it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "lm-eval is a dependency"
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations))) / "tasks"
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*/**/*.yaml")):
        for match in _NAME.finditer(path.read_bytes()):
            found.setdefault(match.group(1).decode(errors="replace"), path)
    return found
