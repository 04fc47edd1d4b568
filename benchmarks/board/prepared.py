"""Problems whose models and documents an example prepares: those of a recipe in `recipes/`."""

import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks._paths import RECIPES
from benchmarks.board.entries import Given
from evosearch.documents import read
from evosearch.errors import CheckpointError, SpecError, SuiteError


def from_recipe(name: str, suite: Path, documents: Mapping[str, int], command: str, folder: Path) -> Given:
    """Models of a recipe, and its suite with other numbers of documents.

    Args:
        name: Name of the recipe's file.
        suite: Suite file.
        documents: Split → documents per task.
        command: Module that prepares the models, for the error.
        folder: For files of the problem; there are none.

    Raises:
        CheckpointError: A model was not prepared.
    """
    recipe = read(RECIPES / f"{name}.yaml", SpecError)["recipe"]
    base = _absolute(recipe["base_model"])
    experts = tuple(_absolute(one["model"]) for one in recipe["models"])
    for part in (part for reference in (base, *experts) for part in reference.split("+")):
        if not Path(part).is_dir():
            raise CheckpointError(part, "folder not found", next=f"Write it with `python -m {command}`")
    given = dict(read(suite, SuiteError)) | {"documents": dict(documents)}
    given["include"] = [str(suite.parent / folder) for folder in given["include"]]
    return Given(base, experts, given)


def _absolute(reference: str) -> str:
    """A reference of folders relative to the recipe, `BASE` or `BASE+ADAPTER`, with absolute paths."""
    return "+".join(os.path.normpath(RECIPES / part) for part in reference.split("+"))
