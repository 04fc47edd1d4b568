"""References: what a recipe calls a model, and the folder it stands for.

| reference | stands for |
|---|---|
| `/abs`, `./rel`, `../rel`, `~/home` | that folder |
| `scheme:rest` | whatever the scheme's resolver makes of it (`zoo:tiny/base`) |
| `name`, where a folder of that name exists | that folder |
| `org/name`, `org/name@revision` | a model of the Hugging Face hub, fetched into the hub's own cache |
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from evosearch.checkpoints.reader import CONFIG
from evosearch.errors import CheckpointError, did_you_mean

Progress = Callable[[str, float], None]  # what is being done, and the part that is done, in [0, 1]
Resolver = Callable[[str, Path, Progress | None], Path]  # (rest of the reference, cache, progress) -> folder

# Weights and what goes with them; never pickles, which can run code when read.
HUB_FILES = [
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*",
]
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


def resolve(reference: str, cache: Path, progress: Progress | None = None) -> Path:
    """The folder a reference stands for, fetched or made if need be.

    Args:
        cache: where resolvers keep what they make; hub models go to the hub's own cache, which other tools share.
        progress: told how fetching or making goes.

    Raises:
        CheckpointError: nothing of that name can be had.
    """
    if reference in (".", "..") or reference.startswith(("/", "./", "../", "~")):
        return _folder(reference)
    scheme = _SCHEME.fullmatch(reference)
    if scheme:
        return _by_scheme(reference, scheme[1], scheme[2], cache, progress)
    if Path(reference).is_dir():
        return _folder(reference)
    return _from_hub(reference, progress)


def _folder(reference: str) -> Path:
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        _refuse_adapter(reference)
        raise CheckpointError(
            reference, "no such folder", "A model folder, or a hub id as org/name@revision", "Check the path"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(reference, f"no {CONFIG} in this folder", f"A model folder: {CONFIG} and *.safetensors")
    return folder.resolve()


def _by_scheme(reference: str, scheme: str, rest: str, cache: Path, progress: Progress | None) -> Path:
    _refuse_adapter(reference)
    resolver = _resolvers.get(scheme)
    if resolver is None:
        known = ", ".join(f"{name}:" for name in sorted(_resolvers)) or "none"
        raise CheckpointError(
            reference, f"unknown scheme '{scheme}:'", f"Known: {known}", did_you_mean(scheme, _resolvers)
        )
    return resolver(rest, cache, progress)


def _from_hub(reference: str, progress: Progress | None) -> Path:
    _refuse_adapter(reference)
    if not _HUB_ID.fullmatch(reference):
        raise CheckpointError(
            reference, "no such folder, and no hub id", "A model folder, or a hub id as org/name@revision"
        )
    name, _, revision = reference.partition("@")
    if progress:
        progress(f"fetching {reference}", 0.0)
    try:  # HF_HUB_OFFLINE=1 is honoured inside
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES))
    except Exception as error:
        raise _hub_error(reference, error) from error
    if progress:
        progress(f"fetching {reference}", 1.0)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(reference, f"no {CONFIG} in this repository", f"A model: {CONFIG} and *.safetensors")
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


def _refuse_adapter(reference: str) -> None:
    if "+" in reference:
        raise CheckpointError(
            reference,
            "model+adapter references are not supported yet",
            "A full model",
            "Merge the adapter into its base first (peft: merge_and_unload, save_pretrained)",
        )
