"""Paths of a spec that are valid on every node of a cluster."""

import os
from collections.abc import Sequence
from pathlib import Path

TOP = "packed"  # the only folder that a job brings along: nothing in it is found by a Python import


def portable(folders: Sequence[str]) -> list[str]:
    """Folders of task files as workers are told of them.

    What a job brought along lies on every node in the working directory of its processes, wherever that is there.
    """
    here = Path.cwd()
    return [os.path.relpath(folder, here) if Path(folder).is_relative_to(here / TOP) else folder for folder in folders]
