"""References: what a recipe calls a model or an adapter, and the folder it stands for.

| reference | stands for |
|---|---|
| `/abs`, `./rel`, `../rel`, `~/home` | that folder |
| `scheme:rest` | whatever the scheme's resolver makes of it (`zoo:tiny/base`) |
| `name`, where a folder of that name exists | that folder |
| `org/name`, `org/name@revision` | a model of the Hugging Face hub, fetched into the hub's own cache |
| `model+adapter` | a model with an adapter applied to it, each one of the above (see `split`, `adapters`) |
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

from evosearch.checkpoints.licences import CARD
from evosearch.checkpoints.reader import CONFIG, INDEX, SINGLE
from evosearch.errors import CheckpointError, did_you_mean
from evosearch.recipe.files import exists, pieces

Progress = Callable[[str, float], None]  # what is being done, and the part that is done, in [0, 1]
Resolver = Callable[[str, Path, Progress | None], Path]  # (rest of the reference, cache, progress) -> folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Weights and what goes with them; pickles, which can run code when read, only where they are allowed and alone.
HUB_SETTINGS = ("*.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "additional_chat_templates/*", CARD)
HUB_FILES = ("*.safetensors", *HUB_SETTINGS)
HUB_PICKLES = ("pytorch_model*.bin",)
HUB_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD)
HUB_ADAPTER_PICKLES = ("adapter_model.bin",)
_SCHEME = re.compile(r"([a-z][a-z0-9.-]*):(.*)", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_resolvers: dict[str, Resolver] = {}


def default_cache() -> Path:
    """Where fetched and made models are kept: $EVOSEARCH_CACHE, or ~/.cache/evosearch."""
    named = os.environ.get("EVOSEARCH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "evosearch"


def register_resolver(scheme: str, resolver: Resolver) -> None:
    """Let references of the form `scheme:rest` mean what `resolver` makes of `rest`."""
    assert _SCHEME.fullmatch(f"{scheme}:"), f"'{scheme}' is no scheme"
    _resolvers[scheme] = resolver


def split(reference: str, known: Container[str] = ()) -> tuple[str, str | None]:
    """The model and the adapter of a reference; None where it names a model alone.

    A folder or recipe that exists is meant as it is, though its path may hold a '+'.

    Args:
        known: further recipes, whose files need not exist here.

    Raises:
        CheckpointError: it names more than one adapter, or one of the two is empty.
    """
    model, *adapters = pieces(reference, lambda piece: piece in known or exists(piece))
    allowed = "One model and one adapter, as model+adapter"
    if len(adapters) > 1:
        next = f"Merge all but one of them into the model first: {', '.join(adapters[:-1])}"
        raise CheckpointError(reference, f"names {len(adapters)} adapters", allowed, next)
    adapter = adapters[0] if adapters else None
    if adapter is not None and not (model and adapter):
        raise CheckpointError(reference, f"no {'model before' if adapter else 'adapter after'} the '+'", allowed)
    return model, adapter


def is_hub_id(reference: str) -> bool:
    """Whether a reference is looked for on the hub: it has the form of an id, and no folder has its name."""
    return bool(_HUB_ID.fullmatch(reference)) and not reference.startswith(("./", "../")) and not _is_folder(reference)


def resolve(reference: str, cache: Path, progress: Progress | None = None, allow_pickle: bool = False) -> Path:
    """The folder a model's reference stands for, fetched or made if need be.

    Args:
        cache: where resolvers keep what they make; hub models go to the hub's own cache, which other tools share.
        progress: told how fetching or making goes.
        allow_pickle: fetch pickled weights where a hub model has no others.

    Raises:
        CheckpointError: no model of that name can be had.
    """
    kind = _Kind("model", CONFIG, (SINGLE, INDEX), HUB_FILES, HUB_PICKLES if allow_pickle else ())
    return _find(reference, kind, cache, progress)


def resolve_settings(reference: str, cache: Path, progress: Progress | None = None) -> Path:
    """As `resolve`, for config and tokenizer alone: the weights of a hub model are not fetched.

    Raises:
        CheckpointError: no model of that name can be had.
    """
    return _find(reference, _Kind("model", CONFIG, (), HUB_SETTINGS, ()), cache, progress)


def resolve_adapter_settings(reference: str, cache: Path, progress: Progress | None = None) -> Path:
    """As `resolve_adapter`, for its config alone.

    Raises:
        CheckpointError: no adapter of that name can be had.
    """
    return _find(reference, _Kind("adapter", ADAPTER_CONFIG, (), (ADAPTER_CONFIG, CARD), ()), cache, progress)


def resolve_adapter(reference: str, cache: Path, progress: Progress | None = None, allow_pickle: bool = False) -> Path:
    """The folder an adapter's reference stands for: as `resolve`, for what follows the '+'.

    Raises:
        CheckpointError: no adapter of that name can be had.
    """
    pickles = HUB_ADAPTER_PICKLES if allow_pickle else ()
    kind = _Kind("adapter", ADAPTER_CONFIG, (ADAPTER_WEIGHTS,), HUB_ADAPTER_FILES, pickles)
    return _find(reference, kind, cache, progress)


def hub_cache() -> Path:
    """Where what is fetched from the hub is kept; see `HF_HOME`."""
    return Path(constants.HF_HUB_CACHE)


def bytes_to_fetch(reference: str, adapter: bool = False, allow_pickle: bool = False) -> int:
    """What resolving a reference would bring from the hub and is not there yet; 0 where it cannot be known.

    Args:
        adapter: it names an adapter.
        allow_pickle: as for `resolve`.
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
    except Exception:  # resolving it says what is wrong, or finds it in the hub's cache
        return 0
    return sum(file.file_size for file in files if file.will_download)


@dataclass(frozen=True)
class _Kind:
    """What a reference is to stand for."""

    name: str  # `model` or `adapter`
    config: str  # the file that every such folder has
    weights: tuple[str, ...]  # the files of which one holds or lists the weights
    hub_files: tuple[str, ...]  # what is fetched from the hub
    hub_pickles: tuple[str, ...]  # what is fetched as well where that brought no weights

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
    if (folder / kind.config).is_file():
        return folder
    what = f"no {kind.config} in this folder"
    if kind.name == "model" and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(reference, what, kind.allowed, f"It holds an adapter: write model+{reference}")
    if kind.name == "adapter" and (folder / CONFIG).is_file():
        raise CheckpointError(reference, what, kind.allowed, "It holds a model: list it as one of the recipe's models")
    raise CheckpointError(reference, what, kind.allowed)


def _is_folder(reference: str) -> bool:
    try:
        return os.path.isdir(os.path.expanduser(reference))
    except (OSError, RuntimeError):  # longer than a path can be, or the home of nobody
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
        raise CheckpointError(reference, "no such folder, and no hub id", allowed)
    name, _, revision = reference.partition("@")
    if progress:
        progress(f"fetching {reference}", 0.0)

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))

    try:  # HF_HUB_OFFLINE=1 is honoured inside
        folder = fetch(kind.hub_files)
        if kind.hub_pickles and not any((folder / file).is_file() for file in kind.weights):
            folder = fetch(kind.hub_files + kind.hub_pickles)
    except Exception as error:
        raise _hub_error(reference, error) from error
    if progress:
        progress(f"fetching {reference}", 1.0)
    return folder


def _hub_error(reference: str, error: Exception) -> Exception:
    """What the hub's client raised, in our words; what is no failure of the hub stays as it is."""
    if isinstance(error, GatedRepoError):
        return CheckpointError(reference, "the hub asks for permission", next="Accept its terms and set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(reference, "the hub has no such revision", "A branch, tag or commit after '@'")
    if isinstance(error, RepositoryNotFoundError):
        next = "Check the name; for a private model set HF_TOKEN"
        return CheckpointError(reference, "no such folder, and no such model on the hub", next=next)
    if isinstance(error, LocalEntryNotFoundError):
        what = "not in the hub's cache, and the hub cannot be reached"
        return CheckpointError(reference, what, next="Fetch it once with a connection and without HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError | HFValidationError | OSError):
        return CheckpointError(reference, f"the hub could not deliver it: {error}".splitlines()[0], next="Try again")
    return error
