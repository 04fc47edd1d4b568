"""A candidate as something to keep: its recipe, the same for mergekit, the merged checkpoint, or a LoRA of its base.

The files say in their first lines where they come from. What is written appears whole or not at all.
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
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.recipe import files
from evosearch.recipe.bundle import bundle
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape

Format = Literal["recipe", "mergekit", "checkpoint", "adapter"]
FOLDERS: Mapping[Format, str] = {"checkpoint": "config.json", "adapter": "adapter_config.json"}  # a file each has
RECIPE_FILE = "recipe.yaml"  # beside exported weights


@dataclass(frozen=True)
class Provenance:
    """Where a recipe comes from, and what it scored."""

    name: str  # of the search
    search_id: str
    candidate: str
    recipe_id: str
    inputs: Mapping[str, str]  # reference → content_sha256
    scores: Mapping[str, Interval] = field(default_factory=dict)  # split → score with its interval
    test_openings: int = 0  # of the search's test set, by all searches; told where there is a test score
    contaminated: bool = False  # the suite acknowledges it


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
        out: the file (for a checkpoint or an adapter: the folder) to write; folders above it are made.
        shape: the models' layout, which `mergekit` needs.
        folders: reference → folder, for mergekit, of references that it cannot resolve.
        adapted: the references that are a model and an adapter.
        write_checkpoint: writes the merged model to a folder that does not exist yet, which `checkpoint` needs.
        write_adapter: the same for an adapter.
        load: reference → the recipe it names; by default from its file.
        overwrite: replace what is at `out`.

    Raises:
        InputError: `out` exists, or cannot be written.
        RecipeError: mergekit cannot express the recipe.
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
        text = header(provenance) + to_mergekit(recipe, shape, folders, adapted)
    else:
        text = recipe_text(recipe, provenance, out.name, load)
    with _replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def recipe_text(
    recipe: Recipe, provenance: Provenance, file: str, load: Callable[[str], Recipe] = files.load_reference
) -> str:
    """A recipe file, with its provenance as comments; recipes that it is made of stand in it, too.

    Raises:
        RecipeError: one of those is missing, or no recipe any more.
    """
    whole = bundle(recipe, load)
    text = header(provenance, f"Rebuild it with:  evosearch merge {file} OUTPUT_FOLDER") + whole.to_yaml()
    last = documents.parse_all(text, file, RecipeError)[-1]
    assert documents.validate(Recipe, last, file, RecipeError) == whole.recipes[None]
    return text


def header(provenance: Provenance, *more: str) -> str:
    """The provenance as YAML comments."""
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
    return "".join(f"# {_one_line(line)}\n" for line in [*lines, *more])


def _one_line(text: str) -> str:
    """Nothing that is put into a comment may end it."""
    return "".join(character if character.isprintable() else " " for character in text)


def _shown(reference: str) -> str:
    """A reference without the folders of one machine: a path by its last part, everything else as it is.

    What is joined is told apart as where models are read: a folder that exists may have a '+' in its path.
    """
    parts = files.pieces(reference, files.exists)
    return "+".join(Path(part).name if part.startswith(("/", "~", "./", "../")) else part for part in parts)


def _refuse_existing(out: Path, fmt: Format, overwrite: bool) -> None:
    """Only what an export may have written is ever replaced: a file, or a folder with a model or an adapter in it."""
    if not out.exists() or (fmt in FOLDERS and out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() != (fmt in FOLDERS) or (fmt in FOLDERS and not (out / FOLDERS[fmt]).exists()):
        kind = "folder" if out.is_dir() else "file"
        raise InputError(str(out), f"is a {kind} that is no {fmt} of a model", next="Name another path")
    if not overwrite:
        raise InputError(str(out), "exists already", next="Name another path, or allow it with --overwrite")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to, which takes its place once all is written."""
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
        raise InputError(str(out), exc.strerror or str(exc), next="Check the path and the space on its disk") from exc
    finally:
        _remove(temporary)


def _swap(temporary: Path, out: Path) -> None:
    """Folders cannot be replaced in one step: the old one steps aside, and goes once the new one is in its place."""
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
