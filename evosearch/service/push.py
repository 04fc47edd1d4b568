"""`evosearch push`: upload an exported checkpoint or adapter, with its model card, to a hub."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from evosearch.errors import EvosearchError, InputError
from evosearch.origins import Secret, how_to_allow, may_receive, name_by_hand, origin_of
from evosearch.private_folder import PrivateFolder
from evosearch.redaction import hidden, hidden_in
from evosearch.reporting.export import ExportResult, export
from evosearch.search.progress import Watcher

HUB = "https://huggingface.co"  # named by the hub id on the command line; any other hub by $HF_ENDPOINT
FOLDER = "evosearch-push-"  # prefix of the temporary folder
FORBIDDEN = (401, 403)


@dataclass(frozen=True)
class PushPlan:
    """An upload that is to be confirmed.

    Attributes:
        url: Address of the model on the hub.
        exists: The model exists there: a commit is added to it.
        private: A new model is private.
        files: File → bytes.
        warnings: Restrictions and conflicts of the parents' licences.
    """

    url: str
    exists: bool
    private: bool
    files: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PushReport:
    """An upload, as `evosearch push --json` prints it.

    Attributes:
        search: Name of the search.
        candidate: The candidate or baseline.
        url: Address of the model on the hub.
        commit: The commit that the upload made.
        files: File → bytes.
        warnings: Restrictions and conflicts of the parents' licences.
    """

    search: str
    candidate: str
    url: str
    commit: str
    files: dict[str, int]
    warnings: tuple[str, ...]


def push(
    search: str,
    hub_id: str,
    fmt: Literal["checkpoint", "adapter"],
    candidate: str | None,
    private: bool,
    confirm: Callable[[PushPlan], bool],
    watcher: Watcher,
    rank: int | None = None,
    save_modules: bool = False,
    allow_pickle: bool = False,
) -> PushReport:
    """Export one candidate of a search and upload it.

    Args:
        search: Name, run directory or spec of the search.
        hub_id: The model on the hub, as `org/name`.
        fmt: `checkpoint` or `adapter`.
        candidate: See `export`.
        private: Make a new model private.
        confirm: Asked before anything is sent.
        watcher: Shows progress.
        rank: See `export`.
        save_modules: See `export`.
        allow_pickle: See `export`.

    Raises:
        InputError: The hub id, the hub or its token is wrong, or an option is; see `export`.
        EvosearchError: The upload was not confirmed, or failed.
    """
    _check_id(hub_id)
    if fmt not in ("checkpoint", "adapter"):
        raise InputError("--format", f"got '{fmt}'", "checkpoint or adapter")
    endpoint = _endpoint()
    token = get_token()
    if not token:
        raise InputError("HF_TOKEN", "no token for the hub", next="Set it, or run `hf auth login`")
    with PrivateFolder.make(FOLDER) as temporary:
        folder = temporary.path / hub_id.partition("/")[2]
        done = export(search, fmt, folder, candidate, False, watcher, rank, save_modules, allow_pickle)
        files = {
            str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
        }
        with _guarded(endpoint), _translated(hub_id):
            api = HfApi(endpoint=endpoint, token=token)
            plan = PushPlan(f"{endpoint}/{hub_id}", api.repo_exists(hub_id), private, files, done.warnings)
            if not confirm(plan):
                raise EvosearchError(f"not pushed to {plan.url}: not confirmed")
            watcher.preparing(f"uploading to {plan.url}", 0.0)
            commit = _upload(api, hub_id, folder, private, done)
            watcher.preparing(f"uploading to {plan.url}", 1.0)
    return PushReport(done.search, done.candidate, plan.url, commit, files, done.warnings)


def _upload(api: HfApi, hub_id: str, folder: Path, private: bool, done: ExportResult) -> str:
    api.create_repo(hub_id, private=private, exist_ok=True)
    message = f"Candidate {done.candidate} of the evosearch search {done.search} as {done.format}"
    return str(api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message).oid)


def _check_id(hub_id: str) -> None:
    """Check that a hub id is `org/name`.

    Raises:
        InputError: It is not.
    """
    allowed = "org/name, of letters, digits, '-', '_' and '.'"
    try:
        validate_repo_id(hub_id)
    except HFValidationError as exc:
        raise InputError("HUB_ID", str(exc).splitlines()[0], allowed) from None
    if hub_id.count("/") != 1:
        raise InputError("HUB_ID", f"got '{hub_id}'", allowed)


def _endpoint() -> str:
    """Return the hub's address, if the user named it for the token.

    Raises:
        InputError: The address comes from elsewhere.
    """
    name_by_hand(Secret.HUB, HUB)
    endpoint = constants.ENDPOINT
    place = origin_of(endpoint, Secret.HUB.scheme)
    if not may_receive(Secret.HUB, place):
        raise InputError("HF_ENDPOINT", how_to_allow(Secret.HUB, place, endpoint))
    return endpoint


@contextmanager
def _guarded(endpoint: str) -> Iterator[None]:
    """Remove the token from every request to a server that the user did not name, such as one that the hub names.

    Xet uploads have their own HTTP client, which cannot be guarded; they are used with Hugging Face's hub only.
    """
    client, xet = get_session(), constants.HF_HUB_DISABLE_XET
    hooks = client.event_hooks

    def guard(request: Any) -> None:
        if not may_receive(Secret.HUB, origin_of(str(request.url))):
            request.headers.pop("authorization", None)

    client.event_hooks = {**hooks, "request": [guard, *hooks.get("request", [])]}
    constants.HF_HUB_DISABLE_XET = xet or endpoint != HUB
    try:
        yield
    finally:
        client.event_hooks = hooks
        constants.HF_HUB_DISABLE_XET = xet


@contextmanager
def _translated(hub_id: str) -> Iterator[None]:
    """Translate exceptions of the hub's client.

    Raises:
        InputError: The token may not write there, or the process is offline.
        EvosearchError: The hub cannot be reached, or refuses the upload.
    """
    try:
        yield
    except EvosearchError:
        raise
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE", "set, so that nothing is uploaded", next="Unset it") from None
    except HfHubHTTPError as exc:
        status = exc.response.status_code if exc.response is not None else 0
        if status in FORBIDDEN:
            what = f"the hub refuses the token ({status}): {_reason(exc)}"
            raise InputError(hub_id, what, next="Use a token with write access to this model") from None
        raise EvosearchError(f"{hub_id}: upload failed: {_reason(exc)}") from None
    except (OSError, ValueError, RuntimeError) as exc:  # the last for a large file, with the cause
        where = hidden(constants.ENDPOINT)
        raise EvosearchError(f"{hub_id}: upload to {where} failed: {_reason(exc.__cause__ or exc)}") from None


def _reason(exc: BaseException) -> str:
    """Return the first line of an error, without secrets."""
    text = str(getattr(exc, "server_message", None) or exc) or type(exc).__name__
    return hidden_in(text.splitlines()[0])
