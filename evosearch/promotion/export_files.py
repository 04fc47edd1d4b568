"""Export of a candidate as a recipe, a mergekit recipe, a merged checkpoint, or a LoRA adapter of its base.

The first lines of each file state its origin; a recipe's section `provenance` has what `verify` compares. Writes are
atomic.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evosearch import documents
from evosearch.checkpoints.model_card import CARD, Card
from evosearch.errors import CheckpointError, InputError, RecipeError
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.merging.registry import specs
from evosearch.promotion.attestation import attestation_of, is_attestation, sign, statement_of
from evosearch.promotion.card import CardSource, card_text
from evosearch.promotion.disclosure import CONTAMINATED, disclosures
from evosearch.recipe import files
from evosearch.recipe.bundle import bundle
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.portable import portable_file, portable_provenance
from evosearch.recipe.provenance import KEY, Provenance
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape
from evosearch.untrusted import present

Format = Literal["recipe", "mergekit", "checkpoint", "adapter"]
FOLDERS: Mapping[Format, str] = {  # format that is a folder → a file that it always contains
    "checkpoint": "config.json",
    "adapter": "adapter_config.json",
}
HEADER = b"# Candidate "  # start of every exported recipe; see `header`
RECIPE_FILE = "recipe.yaml"  # in the folder of exported weights


@dataclass(frozen=True)
class Origin:
    """Search, candidate and scores of a recipe."""

    name: str  # of the search
    search_id: str
    candidate: str
    recipe_id: str
    inputs: Mapping[str, str]  # reference → content_sha256
    scores: Mapping[str, Interval] = field(default_factory=dict)  # split → score with its interval
    test_openings: int = 0  # of the test set, by all searches; disclosed with a test score
    contaminated: bool = False  # the suite acknowledges contamination
    answers: tuple[str, ...] = ()  # statements on the right answers that were not read

    @property
    def statements(self) -> tuple[str, ...]:
        """Statements that qualify the scores, except for openings of the test set."""
        return (*([CONTAMINATED] if self.contaminated else []), *self.answers)


@dataclass(frozen=True)
class Recorded:
    """The section `provenance` of an exported recipe, and what makes its references portable.

    Attributes:
        provenance: The section, with absolute references.
        commits: Hub id as the recipe names it → hub id with its commit.
        cards: Model or adapter → its model card.
    """

    provenance: Provenance
    commits: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)


def export(
    recipe: Recipe,
    fmt: Format,
    out: Path,
    origin: Origin,
    *,
    shape: ModelShape | None = None,
    folders: Mapping[str, str] | None = None,
    adapted: Collection[str] = (),
    write_checkpoint: Callable[[Recipe, Path], object] | None = None,
    write_adapter: Callable[[Recipe, Path], object] | None = None,
    load: Callable[[str], Recipe] = files.load_reference,
    record: Callable[[], Recorded] | None = None,
    key: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a recipe as `fmt`.

    Args:
        recipe: The recipe to export.
        fmt: Format to write.
        out: File to write (a folder for a checkpoint or an adapter); missing parent folders are created.
        origin: Written as comments into the recipe.
        shape: Tensors of the models; required for `mergekit`.
        folders: Reference → folder, for references that mergekit cannot resolve.
        adapted: References that combine a model and an adapter.
        write_checkpoint: Writes the merged model to a new folder; required for `checkpoint`.
        write_adapter: Writes the adapter to a new folder; required for `adapter`.
        load: Reference → the recipe that it names; reads the file by default.
        record: Returns the recipe's section `provenance`; called once weights are written.
        key: File of a private key that signs an attestation of the recipe, next to it; requires `record`.
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
            recorded = record() if record else None
            text = recipe_text(recipe, origin, out / RECIPE_FILE, load, recorded)
            (temporary / RECIPE_FILE).write_text(text, encoding="utf-8")
            if key is not None:
                attested = _attestation(text, RECIPE_FILE, key)
                attestation_of(temporary / RECIPE_FILE).write_text(attested, encoding="utf-8")
            if recorded is not None:
                written = _portable(recipe, out.absolute(), load, recorded.commits).to_yaml()
                adapter_of = recipe.references()[0] if fmt == "adapter" else None
                sources = (recipe, written, recorded.provenance, recorded.cards, recorded.commits, adapter_of)
                (temporary / CARD).write_text(card_text(CardSource(*sources)), encoding="utf-8")
        return out
    if fmt == "mergekit":
        assert shape is not None
        text = header(origin) + to_mergekit(recipe, shape, specs(), folders, adapted)
    else:
        text = recipe_text(recipe, origin, out, load, record and record())
    signed, beside = (None if key is None else _attestation(text, out.name, key)), attestation_of(out)
    if signed is not None and present(beside) and not is_attestation(beside):
        raise InputError(str(beside), "existing file is not an attestation", next="Choose another path for the recipe")
    with _replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if signed is not None:
        with _replacing(beside) as temporary:
            temporary.write_text(signed, encoding="utf-8")
    elif fmt == "recipe" and is_attestation(beside):  # of the recipe that was replaced
        beside.unlink()
    return out


def _attestation(text: str, name: str, key: Path) -> str:
    """Return the signed attestation of a recipe's file."""
    section = documents.parse_all(text, name, RecipeError)[-1][KEY]
    return sign(statement_of(text.encode(), name, documents.validate(Provenance, section, name, RecipeError)), key)


def recipe_text(
    recipe: Recipe,
    origin: Origin,
    file: Path,
    load: Callable[[str], Recipe] = files.load_reference,
    recorded: Recorded | None = None,
) -> str:
    """Return a recipe file that includes the recipes it refers to, with portable references and its origin.

    Args:
        recipe: The recipe.
        origin: Stated in comments.
        file: Where the file will be; paths are relative to its folder.
        load: Reference → the recipe that it names.
        recorded: The section `provenance`; without one, digests are stated in comments.

    Raises:
        RecipeError: One of the included recipes is missing or no longer a recipe.
    """
    folder, commits = file.absolute().parent, recorded.commits if recorded else {}
    written = _portable(recipe, folder, load, commits)
    section = portable_provenance(recorded.provenance, folder, commits) if recorded else None
    text = header(origin, file.name, section is not None) + written.to_yaml(section)
    last = documents.parse_all(text, file.name, RecipeError)[-1]
    assert last.pop(KEY, None) == section
    assert documents.validate(Recipe, last, file.name, RecipeError) == written.recipes[None]
    return text


def _portable(
    recipe: Recipe, folder: Path, load: Callable[[str], Recipe], commits: Mapping[str, str]
) -> files.RecipeFile:
    return portable_file(bundle(recipe, load), folder, commits)


def header(origin: Origin, recipe: str = "", recorded: bool = False) -> str:
    """Format the origin as YAML comments.

    Args:
        origin: The origin.
        recipe: Name of the recipe's file, to state how to rebuild it.
        recorded: The file has a section with all digests, which are then left out here.
    """
    lines = [f"Candidate {origin.candidate} of the evosearch search '{origin.name}'"]
    if not recorded:
        lines += [f"search_id: {origin.search_id}", f"recipe_id: {origin.recipe_id}"]
        lines += [f"input: {_shown(reference)}  content_sha256 {sha}" for reference, sha in origin.inputs.items()]
    for split, score in origin.scores.items():
        within = f"95% interval {score.lower:.2f} to {score.upper:.2f}, {score.n} items"
        lines.append(f"score on {split}: {score.value:.2f} ({within})")
    lines += disclosures(origin.test_openings if "test" in origin.scores else None)
    lines += origin.statements
    lines += [f"Rebuild it with:  evosearch merge {recipe} OUTPUT_FOLDER"] if recipe else []
    lines += [f"Check it with:    evosearch verify {recipe}"] if recorded else []
    return "".join(f"# {_one_line(line)}\n" for line in lines)


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
