"""`import`: a search of another tool as a search spec and a suite."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.checkpoints import references
from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.errors import SpecError
from evosearch.execution.loaders import register_schemes
from evosearch.search.progress import Watcher
from evosearch.search.space.template import frame
from evosearch.spec.config import SpecFile
from evosearch.spec.draft import Section, free_path, local_reference, name_of, render, write_new
from evosearch.spec.imports import auto_merge, mergekit_evolve, mergenetic
from evosearch.spec.imports.imported import Imported, Surroundings
from evosearch.untrusted import beside, read_text

Reader = Callable[[dict[str, Any], str, str, Surroundings, str | None], Imported]
Matches = Callable[[dict[str, Any]], bool]
READERS: tuple[tuple[Matches, Reader], ...] = tuple(
    (each.matches, each.read) for each in (mergekit_evolve, mergenetic, auto_merge)
)
KNOWN = "A search of mergekit-evolve (genome, tasks), mergenetic (pop_size, n_iter) or auto-merge-llm (strategy)"


@dataclass(frozen=True)
class ImportReport:
    """Result of `import`.

    Attributes:
        out: The spec.
        suite: The suite.
        tool: The tool that the search was written for.
        changes: What changes and why, one sentence each.
    """

    out: str
    suite: str
    tool: str
    changes: tuple[str, ...]


def import_spec(path: Path, out: Path | None, watcher: Watcher, include: Path | None = None) -> ImportReport:
    """Read a search of another tool, and write it as a spec with its suite.

    Args:
        path: The other tool's file.
        out: The spec to write, which must not exist; default: `NAME-search.yaml` in the working directory. The suite
            is written to `NAME-suite.yaml` in the same folder.
        watcher: Shows which configs are fetched.
        include: Folder of lm-eval task files that the other tool was told on its command line.

    Raises:
        InputError: The file is of no known tool, or invalid, or a file exists. Nothing is written.
    """
    spec = free_path(out or Path(f"{name_of(path)}-search.yaml"))
    suite = free_path(spec.with_name(f"{spec.stem.removesuffix('-search')}-suite.yaml"))
    around = _Around(path, spec.parent, watcher)
    found = imported(path, name_of(spec.with_stem(spec.stem.removesuffix("-search"))), around, include)
    texts = [(suite, _suite_text(found)), (spec, _spec_text(found, path, suite.name))]
    written = documents.validate(SpecFile, documents.parse(texts[1][1], str(spec), SpecError), str(spec), SpecError)
    frame(written.recipe, f"{spec}: recipe")
    write_new(texts)
    return ImportReport(str(spec), str(suite), found.tool, found.changes)


def imported(path: Path, name: str, around: "_Around", include: Path | None = None) -> Imported:
    """Read a search of another tool.

    Raises:
        SpecError: The file is of no known tool, or invalid.
        CheckpointError: A model's config cannot be read.
    """
    text = read_text(path, SpecError, documents.MAX_BYTES)
    data = documents.parse(auto_merge.plain(text), str(path), SpecError)
    reader = next((read for matches, read in READERS if matches(data)), None)
    if reader is None:
        keys = ", ".join(list(data)[:8])
        next_step = "Recipes of mergekit need no import: evosearch merge FILE OUT" if "merge_method" in data else None
        raise SpecError(str(path), f"not a search of a known tool; its keys are {keys}", KNOWN, next_step)
    folder = None if include is None else around.task_folder(str(include))
    if include is not None and folder is None:
        raise SpecError("--include", f"no folder {include}", "A folder of lm-eval task files (YAML)")
    return reader(data, str(path), name, around, folder)


@dataclass(frozen=True)
class _Around:
    """Files and models around a document; see `Surroundings`."""

    path: Path
    folder: Path  # of the new files
    watcher: Watcher

    def layers(self, model: str) -> int:
        register_schemes()
        head, _ = references.split(model)
        home = references.resolve_settings(head, default_cache(), self.watcher.preparing)
        config = read_json(home / CONFIG)
        return family_of(config, str(home / CONFIG)).shape(config).num_layers

    def reference(self, model: str) -> str:
        head, adapter = references.split(model)
        pieces = [piece for piece in (head, adapter) if piece is not None]
        return "+".join(local_reference(piece, self.folder) for piece in pieces)

    def document(self, name: str) -> dict[str, Any]:
        return documents.read(beside(name, self.path.parent, SpecError), SpecError)

    def task_folder(self, name: str) -> str | None:
        if not name:
            return None
        for folder in (Path(name), self.path.parent / name):
            if folder.is_dir():
                return os.path.relpath(folder.absolute(), self.folder.absolute())
        return None


def _suite_text(found: Imported) -> str:
    head = [f"The tasks of a search for {found.tool}, imported by `evosearch import`."]
    sections = [Section(key, value) for key, value in found.suite.items()]
    return render(head, sections).replace("\n\n", "\n")


def _spec_text(found: Imported, path: Path, suite: str) -> str:
    head = [f"A search for {found.tool}, imported from {path.name} by `evosearch import`. What changes, and why:"]
    head += [f"- {change}" for change in found.changes]
    sections = [
        Section("name", found.name),
        Section("recipe", found.recipe),
        Section("optimizer", found.optimizer),
        Section("suite", suite),
        Section("budget", found.budget),
        *(Section(key, value) for key, value in found.more.items()),
    ]
    return render(head, sections)
