"""References to models and adapters in recipes, and their resolution to folders.

| reference | meaning |
|---|---|
| `/abs`, `./rel`, `../rel`, `~/home` | a folder |
| `scheme:rest` | the result of the scheme's resolver (`zoo:tiny/base`) |
| `name`, if a folder of that name exists | that folder |
| `org/name`, `org/name@revision` | a model on the Hugging Face hub, downloaded into the hub's own cache |
| `model+adapter` | a model with an adapter applied, each one of the above (see `split` and `adapters`) |
| a folder of `evosearch diff`, or `model+folder` | its base, or this model, plus the task vector |
"""

import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from evosearch.checkpoints.model_card import CARD
from evosearch.checkpoints.reader import CONFIG, INDEX, SINGLE
from evosearch.checkpoints.task_vector_file import base_of, is_task_vector
from evosearch.errors import CheckpointError, did_you_mean
from evosearch.recipe.files import exists, pieces
from evosearch.untrusted import present

Progress = Callable[[str, float], None]  # (current step, fraction done in [0, 1])
Resolver = Callable[[str, Path, Progress | None], Path]  # (rest of the reference, cache, progress) → folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Files to download. Pickles can run code when loaded, so they are downloaded only if allowed and without safetensors.
HUB_SETTINGS = ("*.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "additional_chat_templates/*", CARD)
HUB_FILES = ("*.safetensors", *HUB_SETTINGS)
HUB_PICKLES = ("pytorch_model*.bin",)
HUB_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD)
HUB_ADAPTER_PICKLES = ("adapter_model.bin",)
_SCHEME = re.compile(r"([a-z][a-z0-9.-]*):(.*)", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_resolvers: dict[str, Resolver] = {}


def default_cache() -> Path:
    """Return the cache folder: $EVOSEARCH_CACHE, or ~/.cache/evosearch."""
    named = os.environ.get("EVOSEARCH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "evosearch"


def register_resolver(scheme: str, resolver: Resolver) -> None:
    """Register the resolver of references `scheme:rest`."""
    assert _SCHEME.fullmatch(f"{scheme}:"), f"'{scheme}' is not a valid scheme"
    _resolvers[scheme] = resolver


def split(reference: str, known: Container[str] = ()) -> tuple[str, str | None]:
    """Split a reference into model and adapter; the adapter is None if there is none.

    A '+' in the path of an existing folder or recipe does not separate. A task vector alone is split into its base and
    itself.

    Args:
        reference: Reference of a recipe.
        known: References of recipes, whose files need not exist on this machine.

    Raises:
        CheckpointError: There is more than one adapter, model or adapter is empty, or a task vector is damaged.
    """
    model, *adapters = pieces(reference, lambda piece: piece in known or exists(piece))
    allowed = "One model and one adapter, as model+adapter"
    if len(adapters) > 1:
        next = f"Merge all but the last into the model first: {', '.join(adapters[:-1])}"
        raise CheckpointError(reference, f"got {len(adapters)} adapters", allowed, next)
    adapter = adapters[0] if adapters else None
    if adapter is not None and not (model and adapter):
        raise CheckpointError(reference, f"no {'model before' if adapter else 'adapter after'} the '+'", allowed)
    if (
        adapter is None
        and model not in known
        and _is_folder(model)
        and is_task_vector(folder := Path(os.path.expanduser(model)))
    ):
        return base_of(folder), model
    return model, adapter


def is_hub_id(reference: str) -> bool:
    """Return whether a reference is looked up on the hub: a valid id, and no folder has this name."""
    return bool(_HUB_ID.fullmatch(reference)) and not reference.startswith(("./", "../")) and not _is_folder(reference)


def resolve(reference: str, cache: Path, progress: Progress | None = None, allow_pickle: bool = False) -> Path:
    """Return the folder of a model, downloaded or created first if needed.

    Args:
        reference: Reference without adapter.
        cache: Folder for the results of resolvers. Hub models go to the hub's own cache, which other tools share.
        progress: Called while the model is downloaded or created.
        allow_pickle: Download pickled weights if a hub model has no others.

    Raises:
        CheckpointError: The model is not available.
    """
    kind = _Kind("model", CONFIG, (SINGLE, INDEX), HUB_FILES, HUB_PICKLES if allow_pickle else ())
    return _find(reference, kind, cache, progress)


def resolve_settings(reference: str, cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of a model like `resolve`, but without downloading the weights of a hub model.

    Raises:
        CheckpointError: The model is not available.
    """
    return _find(reference, _Kind("model", CONFIG, (), HUB_SETTINGS, ()), cache, progress)


def resolve_adapter_settings(reference: str, cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of an adapter like `resolve_adapter`, but without downloading its weights.

    Raises:
        CheckpointError: The adapter is not available.
    """
    return _find(reference, _Kind("adapter", ADAPTER_CONFIG, (), (ADAPTER_CONFIG, CARD), ()), cache, progress)


def resolve_adapter(reference: str, cache: Path, progress: Progress | None = None, allow_pickle: bool = False) -> Path:
    """Return the folder of an adapter: like `resolve`, for the part of a reference after the '+'.

    Raises:
        CheckpointError: The adapter is not available.
    """
    pickles = HUB_ADAPTER_PICKLES if allow_pickle else ()
    kind = _Kind("adapter", ADAPTER_CONFIG, (ADAPTER_WEIGHTS,), HUB_ADAPTER_FILES, pickles)
    return _find(reference, kind, cache, progress)


def hub_cache() -> Path:
    """Return the folder of the hub's cache, see `HF_HOME`."""
    return Path(constants.HF_HUB_CACHE)


def bytes_to_fetch(reference: str, adapter: bool = False, allow_pickle: bool = False) -> int:
    """Return the bytes that resolving a reference would download; 0 if this cannot be determined.

    Args:
        reference: Reference of a model or an adapter.
        adapter: Whether it is an adapter.
        allow_pickle: See `resolve`.
    """
    if not is_hub_id(reference):
        return 0
    wanted = HUB_ADAPTER_FILES if adapter else HUB_FILES
    weights = (ADAPTER_WEIGHTS,) if adapter else (SINGLE, INDEX)
    pickled = (HUB_ADAPTER_PICKLES if adapter else HUB_PICKLES) if allow_pickle else ()
    name, _, revision = reference.partition("@")

    def listed(patterns: tuple[str, ...]) -> list[Any]:
        return snapshot_download(name, revision=revision or None, allow_patterns=list(patterns), dry_run=True)

    try:
        files = listed(wanted)
        if pickled and not any(file.filename in weights for file in files):
            files = listed((*wanted, *pickled))
    except Exception:  # resolving reports the error, or finds the model in the hub's cache
        return 0
    return sum(file.file_size for file in files if file.will_download)


@dataclass(frozen=True)
class _Kind:
    """Kind of a reference (model or adapter), and its files."""

    name: str  # `model` or `adapter`
    config: str  # file that every such folder has
    weights: tuple[str, ...]  # files that contain or list the weights; one of them is required
    hub_files: tuple[str, ...]  # patterns of files to download
    hub_pickles: tuple[str, ...]  # patterns to download too if none of `weights` is on the hub

    @property
    def allowed(self) -> str:
        return f"{'A model' if self.name == 'model' else 'An adapter'}: {self.config} and *.safetensors"


def _find(reference: str, kind: _Kind, cache: Path, progress: Progress | None) -> Path:
    scheme = _SCHEME.fullmatch(reference)
    if reference in (".", "..") or reference.startswith(("/", "./", "../", "~")):
        folder = _folder(reference, kind)
    elif scheme:
        folder = _by_scheme(reference, scheme[1], scheme[2], cache, progress)
    elif _is_folder(reference):
        folder = _folder(reference, kind)
    else:
        folder = _from_hub(reference, kind, progress)
    if present(folder / kind.config) or (kind.name == "adapter" and is_task_vector(folder)):
        return folder
    what = f"no {kind.config} in this folder"
    if kind.name == "model" and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(reference, what, kind.allowed, f"This is an adapter. Write model+{reference}")
    if kind.name == "adapter" and (folder / CONFIG).is_file():
        raise CheckpointError(reference, what, kind.allowed, "This is a model. List it among the recipe's models")
    raise CheckpointError(reference, what, kind.allowed)


def _is_folder(reference: str) -> bool:
    try:
        return os.path.isdir(os.path.expanduser(reference))
    except (OSError, RuntimeError):  # path too long, or unknown user in ~user
        return False


def _folder(reference: str, kind: _Kind) -> Path:
    if not _is_folder(reference):
        allowed = f"A folder with {kind.config}, or a hub id as org/name@revision"
        raise CheckpointError(reference, "no such folder", allowed, "Check the path")
    return Path(os.path.expanduser(reference)).resolve()


def _by_scheme(reference: str, scheme: str, rest: str, cache: Path, progress: Progress | None) -> Path:
    resolver = _resolvers.get(scheme)
    if resolver is None:
        known = ", ".join(f"{name}:" for name in sorted(_resolvers)) or "none"
        raise CheckpointError(
            reference, f"unknown scheme '{scheme}:'", f"Known: {known}", did_you_mean(scheme, _resolvers)
        )
    return resolver(rest, cache, progress)


def _from_hub(reference: str, kind: _Kind, progress: Progress | None) -> Path:
    if not _HUB_ID.fullmatch(reference):
        allowed = f"A folder with {kind.config}, or a hub id as org/name@revision"
        raise CheckpointError(reference, "no such folder, and not a valid hub id", allowed)
    name, _, revision = reference.partition("@")
    if progress:
        progress(f"downloading {reference}", 0.0)

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))

    try:  # respects HF_HUB_OFFLINE=1
        folder = fetch(kind.hub_files)
        if kind.hub_pickles and not any((folder / file).is_file() for file in kind.weights):
            folder = fetch(kind.hub_files + kind.hub_pickles)
    except Exception as error:
        raise _hub_error(reference, error) from error
    if progress:
        progress(f"downloading {reference}", 1.0)
    return folder


def _hub_error(reference: str, error: Exception) -> Exception:
    """Translate an exception of the hub's client; other exceptions are returned unchanged."""
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            reference, "access is restricted", next="Accept the model's terms on the hub and set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(reference, "the hub has no such revision", "A branch, tag or commit after '@'")
    if isinstance(error, RepositoryNotFoundError):
        next = "Check the name; for a private model set HF_TOKEN"
        return CheckpointError(reference, "no such folder, and no such model on the hub", next=next)
    if isinstance(error, LocalEntryNotFoundError):
        what = "not in the hub's cache, and the hub is unreachable"
        return CheckpointError(reference, what, next="Download it once while online and without HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError | HFValidationError | OSError):
        return CheckpointError(reference, f"download failed: {error}".splitlines()[0], next="Try again")
    return error
