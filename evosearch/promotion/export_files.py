"""Export of a candidate as a recipe, a mergekit recipe, a merged checkpoint, or a LoRA adapter of its base.

The first lines of each file state its provenance. Writes are atomic.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evosearch import documents
from evosearch.errors import CheckpointError, InputError, RecipeError
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.merging.registry import specs
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.recipe import files
from evosearch.recipe.bundle import bundle
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape

Format = Literal["recipe", "mergekit", "checkpoint", "adapter"]
FOLDERS: Mapping[Format, str] = {  # format that is a folder → a file that it always contains
    "checkpoint": "config.json",
    "adapter": "adapter_config.json",
}
HEADER = b"# Candidate "  # start of every exported recipe; see `header`
RECIPE_FILE = "recipe.yaml"  # in the folder of exported weights


@dataclass(frozen=True)
class Provenance:
    """Origin and scores of a recipe."""

    name: str  # of the search
    search_id: str
    candidate: str
    recipe_id: str
    inputs: Mapping[str, str]  # reference → content_sha256
    scores: Mapping[str, Interval] = field(default_factory=dict)  # split → score with its interval
    test_openings: int = 0  # of the test set, by all searches; disclosed with a test score
    contaminated: bool = False  # the suite acknowledges contamination
    answers: tuple[str, ...] = ()  # statements on the right answers that were not read


def export(
    recipe: Recipe,
    fmt: Format,
    out: Path,
    provenance: Provenance,
    *,
    shape: ModelShape | None = None,
    folders: Mapping[str, str] | None = None,
    adapted: Collection[str] = (),
    write_checkpoint: Callable[[Recipe, Path], object] | None = None,
    write_adapter: Callable[[Recipe, Path], object] | None = None,
    load: Callable[[str], Recipe] = files.load_reference,
    overwrite: bool = False,
) -> Path:
    """Write a recipe as `fmt`.

    Args:
        recipe: The recipe to export.
        fmt: Format to write.
        out: File to write (a folder for a checkpoint or an adapter); missing parent folders are created.
        provenance: Written as comments into the recipe.
        shape: Tensors of the models; required for `mergekit`.
        folders: Reference → folder, for references that mergekit cannot resolve.
        adapted: References that combine a model and an adapter.
        write_checkpoint: Writes the merged model to a new folder; required for `checkpoint`.
        write_adapter: Writes the adapter to a new folder; required for `adapter`.
        load: Reference → the recipe that it names; reads the file by default.
        overwrite: Replace an existing `out`.

    Returns:
        `out`.

    Raises:
        InputError: `out` exists, or cannot be written.
        RecipeError: Mergekit cannot express the recipe.
    """
    _refuse_existing(out, fmt, overwrite)
    if fmt in FOLDERS:
        write = write_checkpoint if fmt == "checkpoint" else write_adapter
        assert write is not None
        with _replacing(out) as temporary:
            try:
                write(recipe, temporary)
            except CheckpointError as exc:
                if exc.where != str(temporary):
                    raise
                raise CheckpointError(str(out), exc.what, exc.allowed, exc.next) from None
            text = recipe_text(recipe, provenance, RECIPE_FILE, load)
            (temporary / RECIPE_FILE).write_text(text, encoding="utf-8")
        return out
    if fmt == "mergekit":
        assert shape is not None
        text = header(provenance) + to_mergekit(recipe, shape, specs(), folders, adapted)
    else:
        text = recipe_text(recipe, provenance, out.name, load)
    with _replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def recipe_text(
    recipe: Recipe, provenance: Provenance, file: str, load: Callable[[str], Recipe] = files.load_reference
) -> str:
    """Return a recipe file that includes the recipes it refers to, with its provenance as comments.

    Raises:
        RecipeError: One of the included recipes is missing or no longer a recipe.
    """
    bundled = bundle(recipe, load)
    text = header(provenance, f"Rebuild it with:  evosearch merge {file} OUTPUT_FOLDER") + bundled.to_yaml()
    last = documents.parse_all(text, file, RecipeError)[-1]
    assert documents.validate(Recipe, last, file, RecipeError) == bundled.recipes[None]
    return text


def header(provenance: Provenance, *more: str) -> str:
    """Format the provenance as YAML comments."""
    lines = [
        f"Candidate {provenance.candidate} of the evosearch search '{provenance.name}'",
        f"search_id: {provenance.search_id}",
        f"recipe_id: {provenance.recipe_id}",
    ]
    lines += [f"input: {_shown(reference)}  content_sha256 {sha}" for reference, sha in provenance.inputs.items()]
    for split, score in provenance.scores.items():
        within = f"95% interval {score.lower:.2f} to {score.upper:.2f}, {score.n} items"
        lines.append(f"score on {split}: {score.value:.2f} ({within})")
    if "test" in provenance.scores:
        lines.append(opened(provenance.test_openings))
    if provenance.contaminated:
        lines.append(CONTAMINATED)
    lines += provenance.answers
    return "".join(f"# {_one_line(line)}\n" for line in [*lines, *more])


def _one_line(text: str) -> str:
    """Replace characters that would end a comment."""
    return "".join(character if character.isprintable() else " " for character in text)


def _shown(reference: str) -> str:
    """Shorten the paths in a reference to their last component, so that local folder names are not exported.

    The reference is split as in the model loader: the path of an existing folder may contain a '+'.
    """
    parts = files.pieces(reference, files.exists)
    return "+".join(Path(part).name if part.startswith(("/", "~", "./", "../")) else part for part in parts)


def _refuse_existing(out: Path, fmt: Format, overwrite: bool) -> None:
    """Refuse an existing `out`, unless it is an earlier export that may be replaced.

    Raises:
        InputError: `out` is not an export of this format, or `overwrite` is not set.
    """
    if not out.exists() or (fmt in FOLDERS and out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() != (fmt in FOLDERS) or not _is_export(out, fmt):
        kind = "folder" if out.is_dir() else "file"
        raise InputError(str(out), f"existing {kind} is not an exported {fmt}", next="Choose another path")
    if not overwrite:
        raise InputError(str(out), "already exists", next="Choose another path, or pass --overwrite")


def _is_export(out: Path, fmt: Format) -> bool:
    """Whether an existing file or folder looks like an export of this format."""
    file = out / RECIPE_FILE if fmt in FOLDERS else out
    if not file.is_file() or (fmt in FOLDERS and not (out / FOLDERS[fmt]).exists()):
        return False
    with file.open("rb") as opened:
        return opened.read(len(HEADER)) == HEADER


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to `out` once the block succeeds."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if out.is_dir() or temporary.is_dir():
            _swap(temporary, out)
        else:
            os.replace(temporary, out)
    except OSError as exc:
        raise InputError(str(out), exc.strerror or str(exc), next="Check the path and the free disk space") from exc
    finally:
        _remove(temporary)


def _swap(temporary: Path, out: Path) -> None:
    """Replace a folder, which cannot be atomic: move the old one aside, and delete it last."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.replace(out, old)
    os.replace(temporary, out)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
