"""Public functions on models and recipes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evosearch.api.arguments import PathLike, reference, watching
from evosearch.umask import private_files

if TYPE_CHECKING:
    from evosearch.recipe.schema import Recipe
    from evosearch.search.progress import Watcher
    from evosearch.service.analyze import AnalyzeReport
    from evosearch.service.diff import DiffReport
    from evosearch.service.merge import MergeReport
    from evosearch.service.score import ScoreReport


@private_files()
def score(
    model: PathLike,
    suite: PathLike,
    *,
    split: str = "search",
    items: PathLike | None = None,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "ScoreReport":
    """Score a model or a recipe on one split of a suite, in this process.

    Args:
        model: A model (folder, hub id, `zoo:NAME`), or a recipe file.
        suite: The suite file.
        split: `search`, `validation` or `test`; scoring on `test` is recorded.
        items: File to write one JSON line per item to.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Raises:
        InputError: The model, recipe, suite or split is wrong.
        EvosearchError: The model cannot be scored.

    Examples:
        >>> import evosearch
        >>> report = evosearch.score("./base", "suite.yaml", split="validation")
        >>> report.tasks["choice"].metric, report.tasks["choice"].n
        ('acc', 10)
    """
    from evosearch.service.score import score

    file = None if items is None else Path(items)
    return score(reference(model), Path(suite), split, file, watching(watcher), allow_pickle)


@private_files()
def merge(
    recipe: PathLike,
    out: PathLike,
    *,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "MergeReport":
    """Merge the models of a recipe and write an ordinary checkpoint.

    Args:
        recipe: The recipe file.
        out: Folder to write; it must be empty or not exist.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
        watcher: Receives progress and notes.

    Raises:
        InputError: The recipe is wrong, its models cannot be merged, or `out` is not empty.

    Examples:
        >>> import evosearch
        >>> evosearch.merge("mean.yaml", "merged").tensors
        30
    """
    from evosearch.service.merge import merge

    return merge(Path(recipe), Path(out), watching(watcher), allow_pickle, allow_unrelated)


@private_files()
def diff(
    base: PathLike,
    model: PathLike,
    out: PathLike,
    *,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "DiffReport":
    """Write the task vector of a model, its difference from a base, as a folder that recipes take as a model.

    Args:
        base: The base (folder, hub id, `zoo:NAME`).
        model: A model of the same architecture, `model+adapter`, or a recipe file.
        out: Folder to write; it must be empty or not exist.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Accept a model that is no fine-tune of the base.
        watcher: Receives progress and notes.

    Raises:
        InputError: A model is wrong, the two do not fit together, or `out` is not empty.

    Examples:
        >>> import evosearch
        >>> evosearch.diff("./base", "./expert1", "vector").unchanged
        0
    """
    from evosearch.service.diff import diff

    return diff(reference(base), reference(model), Path(out), watching(watcher), allow_pickle, allow_unrelated)


@private_files()
def analyze(
    models: "PathLike | Sequence[PathLike]",
    *,
    base: PathLike | None = None,
    suite: PathLike | None = None,
    leave_one_out: bool = False,
    path: bool = False,
    calibration: bool = False,
    split: Literal["search", "validation"] = "search",
    points: int = 11,
    top: int = 8,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "AnalyzeReport":
    """Compare the task vectors of models by layer and module, or score merges of them on a suite.

    Args:
        models: A recipe file, or models.
        base: Base that changes are measured from; default: that of the recipe.
        suite: Suite file for the next three options.
        leave_one_out: Score a recipe's merge without each parent.
        path: Score merges on the lines between two models, and from the base to each.
        calibration: Measure the calibration of choices.
        split: Split to score on.
        points: Number of merges on a path, with both ends.
        top: Number of singular vectors whose subspaces are compared.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Returns:
        The figures that were asked; without any of the three options those of the weights.

    Raises:
        InputError: The models, the suite or an option is wrong.
        EvosearchError: A merge cannot be scored.

    Examples:
        >>> import evosearch
        >>> report = evosearch.analyze(["./expert1", "./expert2"], base="./base")
        >>> [row.name for row in report.weights.layers]
        ['embeddings', 'layer 0', 'layer 1', 'layer 2', 'final_norm', 'head']
    """
    from evosearch.service.analyze import AnalyzeOptions, analyze

    listed = [models] if isinstance(models, str | os.PathLike) else models
    options = AnalyzeOptions(
        base=None if base is None else reference(base),
        leave_one_out=leave_one_out,
        path=path,
        calibration=calibration,
        suite=None if suite is None else Path(suite),
        split=split,
        points=points,
        top=top,
        allow_pickle=allow_pickle,
    )
    return analyze([reference(one) for one in listed], options, watching(watcher))


def load_recipe(path: PathLike, *, name: str | None = None) -> "Recipe":
    """Read and validate a recipe; models are not opened.

    Args:
        path: The recipe file. Relative references are resolved against its folder.
        name: Name of the document to read, in a file of several; by default the one without a name, or else the last.

    Raises:
        RecipeError: The file is missing, or one of its documents is not a recipe.

    Examples:
        >>> import evosearch
        >>> recipe = evosearch.load_recipe("mean.yaml")
        >>> recipe.merge_method, len(recipe.models)
        ('linear', 2)
    """
    from evosearch.recipe.files import load

    return load(Path(path), name)
