"""Downloads by the real client of the Hugging Face hub, from a local server with two revisions of one model."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from evosearch.checkpoints.references import bytes_to_fetch, resolve, resolve_adapter, resolve_settings
from evosearch.errors import CheckpointError

MODEL = "org/name"
Revisions = Mapping[str, Mapping[str, bytes]]  # revision → file → content
CONFIG = b'{"model_type": "llama"}'
REVISIONS = {
    "main": {"config.json": CONFIG, "model.safetensors": b"m" * 1000, "pytorch_model.bin": b"p" * 7},
    "v1": {"config.json": CONFIG + b"\n\n", "model.safetensors": b"v" * 300, "notes.txt": b"-" * 50},
    "pickled": {"config.json": CONFIG, "pytorch_model.bin": b"p" * 77},
    "lora": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a" * 40, "optimizer.pt": b"o" * 900},
}


def commit_of(revision: str) -> str:
    """Return the commit hash of a revision."""
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def hub(revisions: Revisions) -> Iterator[tuple[str, list[str]]]:
    """Serve the revisions of `MODEL`; yields the endpoint and a growing list of downloaded files."""
    downloads: list[str] = []
    by_commit = {commit_of(name): files for name, files in revisions.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if not path.startswith((f"/{MODEL}/", f"/api/models/{MODEL}")):
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            rest = path.partition(MODEL)[2].strip("/")
            kind, _, rest = rest.partition("/")
            revision, _, file = rest.partition("/")
            commit = revision if revision in by_commit else commit_of(revision or "main")
            if commit not in by_commit:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if kind == "resolve":
                return self._file(commit, file)
            if kind == "tree":
                return self._send(200, json.dumps(listing(by_commit[commit])).encode())
            return self._send(200, json.dumps({"id": MODEL, "sha": commit}).encode())

        def _file(self, commit: str, file: str) -> None:
            content = by_commit[commit][file]
            if self.command == "GET":
                downloads.append(file)
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    """Return the tree of a revision as the hub lists it."""
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in files.items()
    ]


@dataclass
class Hub:
    cache: Path
    downloads: list[str]


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with hub(REVISIONS) as (endpoint, downloads):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        # huggingface_hub reads the environment when it is imported
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield Hub(tmp_path / "hub", downloads)
        close_session()


def size(revision: str, *files: str) -> int:
    return sum(len(REVISIONS[revision][file]) for file in files)


FILES = ("config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("reference", "revision"),
    [(MODEL, "main"), (f"{MODEL}@main", "main"), (f"{MODEL}@v1", "v1"), (f"{MODEL}@{commit_of('v1')}", "v1")],
)
def test_bytes_to_fetch_depend_on_the_revision(local_hub, reference, revision, tmp_path):
    expected = size(revision, *FILES)
    assert bytes_to_fetch(reference) == expected
    assert local_hub.downloads == []
    folder = resolve(reference, tmp_path)
    assert sorted(local_hub.downloads) == sorted(FILES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        file: REVISIONS[revision][file] for file in FILES
    }
    assert bytes_to_fetch(reference) == 0
    other = {"main": "v1", "v1": "main"}[revision]
    assert bytes_to_fetch(f"{MODEL}@{other}") == size(other, *FILES)


def test_each_revision_has_its_own_folder(local_hub, tmp_path):
    first, second = resolve(MODEL, tmp_path), resolve(f"{MODEL}@v1", tmp_path)
    assert [folder.name for folder in (first, second)] == [commit_of("main"), commit_of("v1")]
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()
    assert resolve(MODEL, tmp_path) == first


def test_settings_are_downloaded_without_weights(local_hub, tmp_path):
    folder = resolve_settings(f"{MODEL}@v1", tmp_path)
    assert local_hub.downloads == ["config.json"]
    assert (folder / "config.json").read_bytes() == REVISIONS["v1"]["config.json"]
    assert bytes_to_fetch(f"{MODEL}@v1") == size("v1", "model.safetensors")


def test_pickles_are_counted_only_if_allowed_and_without_other_weights(local_hub, tmp_path):
    assert bytes_to_fetch(f"{MODEL}@pickled") == size("pickled", "config.json")
    assert bytes_to_fetch(f"{MODEL}@pickled", allow_pickle=True) == size("pickled", "config.json", "pytorch_model.bin")
    assert bytes_to_fetch(MODEL, allow_pickle=True) == size("main", *FILES)
    resolve(f"{MODEL}@pickled", tmp_path, allow_pickle=True)
    assert sorted(local_hub.downloads) == ["config.json", "pytorch_model.bin"]


def test_an_adapter_of_a_revision(local_hub, tmp_path):
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert bytes_to_fetch(f"{MODEL}@lora", adapter=True) == size("lora", *files)
    resolve_adapter(f"{MODEL}@lora", tmp_path)
    assert sorted(local_hub.downloads) == sorted(files)
    assert bytes_to_fetch(f"{MODEL}@lora", adapter=True) == 0


def test_a_missing_revision_and_a_missing_model_are_named(local_hub, tmp_path):
    assert bytes_to_fetch(f"{MODEL}@v9") == 0
    with pytest.raises(CheckpointError, match=r"org/name@v9: the hub has no such revision"):
        resolve(f"{MODEL}@v9", tmp_path)
    with pytest.raises(CheckpointError, match=r"org/other: no such folder, and no such model on the hub"):
        resolve("org/other", tmp_path)
    assert local_hub.downloads == []
