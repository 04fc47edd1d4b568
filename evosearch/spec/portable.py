"""Paths of task files that are valid on every node of a cluster."""

import os
from collections.abc import Sequence
from pathlib import Path

TOP = "packed"  # the folder that a job ships; its name keeps Python from importing anything in it


def portable(folders: Sequence[str]) -> list[str]:
    """Folders of task files as workers on any node can open them.

    Files shipped with a job are in the working directory of its processes, whose path differs between nodes: folders
    below it become relative.
    """
    here = Path.cwd()
    return [os.path.relpath(folder, here) if Path(folder).is_relative_to(here / TOP) else folder for folder in folders]
