"""Paths of a suite's files that are valid on every node of a cluster."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOP = "packed"  # the folder that a job ships; its name keeps Python from importing anything in it


def portable(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite, as plain data, with paths that workers on any node can open.

    Files shipped with a job are in the working directory of its processes, whose path differs between nodes: paths
    below it become relative.
    """
    here = Path.cwd()

    def place(path: str) -> str:
        return os.path.relpath(path, here) if Path(path).is_relative_to(here / TOP) else path

    tasks = [task | {"prompts": place(task["prompts"])} if task["prompts"] else task for task in suite["tasks"]]
    return {**suite, "include": [place(folder) for folder in suite["include"]], "tasks": tasks}
