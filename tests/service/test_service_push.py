"""`evosearch push` uploads by the real client to a local server that speaks the hub's protocol, and serves it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from evosearch.checkpoints.model_card import card_of
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import resolve
from evosearch.recipe.files import load_provenance
from evosearch.search.progress import Silent
from evosearch.service.run import run

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
# The hub's client uploads large files with a keyword that its HTTP library deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_ofthetest"
COMMIT = "c0" * 20


class Server:
    """A server whose handler is a method, with the requests that it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []  # (method, path, Authorization)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self._chunks()
                path = unquote(urlsplit(self.path).path)
                server.seen.append((self.command, path, self.headers.get("Authorization", "")))
                status, headers, content = server.answer(self.command, path, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def _chunks(self) -> bytes:
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class Storage(Server):
    """Object storage, which the hub names for large files: another server, which must not get the token."""

    status = 200

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        super().__init__()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if method == "PUT":
            self.objects[path.rpartition("/")[2]] = body
        return self.status, {}, b"{}"


class Hub(Server):
    """A hub with one account: repositories, commits and files."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.repos = storage, {}
        super().__init__()

    repos: dict[str, dict[str, bytes]]
    private: bool | None = None
    refuse = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.refuse and method == "POST":
            return 403, {}, b'{"error": "this token cannot write"}'
        if path == "/api/repos/create":
            data = json.loads(body)
            name = f"{data['organization']}/{data['name']}"
            self.private = {"private": True, "public": False}.get(data.get("visibility"))
            self.repos.setdefault(name, {})
            return self.json({"url": f"{self.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        found = re.fullmatch(r"(?:/api/models)?/([\w-]+/[\w-]+)(?:\.git)?(?:/(\w+)(?:/(.*))?)?", path)
        if found is None or found[1] not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "no such repository"}'
        files, kind, rest = self.repos[found[1]], found[2], found[3] or ""
        if kind == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
            return self.json({"files": modes})
        if kind == "info":
            return self.json({"transfer": "basic", "objects": [self.lfs(one) for one in json.loads(body)["objects"]]})
        if kind == "commit":
            return self.commit(files, body)
        if kind == "resolve":
            content = files.get(rest.partition("/")[2])
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            etag = hashlib.sha1(content).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content
        if kind == "tree":
            tree = [{"type": "file", "path": name, "size": len(one), "oid": COMMIT} for name, one in files.items()]
            return self.json(tree)
        return self.json({"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

    def lfs(self, one: dict[str, Any]) -> dict[str, Any]:
        place = self.storage.url
        actions = {"upload": {"href": f"{place}/put/{one['oid']}"}, "verify": {"href": f"{place}/verify/{one['oid']}"}}
        return {"oid": one["oid"], "size": one["size"], "actions": actions}

    def commit(self, files: dict[str, bytes], body: bytes) -> tuple[int, dict[str, str], bytes]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.storage.objects[value["oid"]]
        name = next(name for name, own in self.repos.items() if own is files)
        address = f"{self.url}/{name}/commit/{COMMIT}"
        answer = {"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""}
        return self.json(answer)

    @staticmethod
    def json(data: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    storage = Storage()
    served = Hub(storage)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    # huggingface_hub reads the environment when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield served
    close_session()
    served.close()
    storage.close()


@pytest.fixture
def search(world: World) -> str:
    run(world("night", budget={"candidates": 6}), Silent())
    return "night"


def test_a_checkpoint_is_pushed_with_its_card_and_loads_from_there(
    search: str, hub: Hub, evosearch: Evosearch, tmp_path: Path
) -> None:
    code, out, err = evosearch("push", search, "me/merged", "--candidate", "3", "--yes", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["url"], report["commit"]) == (f"{hub.url}/me/merged", COMMIT)
    pushed = hub.repos["me/merged"]
    assert pushed.keys() == report["files"].keys()
    assert pushed.keys() >= {"README.md", "config.json", "model.safetensors", "recipe.yaml", "tokenizer.json"}
    assert hub.private is True

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("me/merged", tmp_path)
    assert folder.name == COMMIT
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).vocab_size <= model.config.vocab_size
    assert card_of(folder).note == ""
    (tmp_path / "recipe.yaml").write_bytes(pushed["recipe.yaml"])
    recorded = load_provenance(tmp_path / "recipe.yaml")
    assert recorded is not None
    assert Checkpoint.open(folder).content_sha256() == recorded.weights_sha256

    assert {place for _, _, place in hub.seen if place} == {f"Bearer {TOKEN}"}
    assert [method for method, _, _ in hub.storage.seen] == ["PUT", "POST"]
    assert {place for _, _, place in hub.storage.seen} == {""}, "the hub named this server, the user did not"

    code, _, err = evosearch("push", search, "me/merged", "--candidate", "2", "--public", "--yes")
    assert code == 0, err
    assert "adds a commit to" in err


def test_an_adapter_is_pushed_for_its_base(search: str, hub: Hub, evosearch: Evosearch) -> None:
    options = ("--candidate", "3", "--format", "adapter", "--save-modules", "--rank", "4", "--public", "--yes")
    code, _, err = evosearch("push", search, "me/lora", *options)
    assert code == 0, err
    assert "makes the public model" in err
    assert hub.private is False
    assert hub.repos["me/lora"].keys() == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
    }
    assert b"library_name: peft" in hub.repos["me/lora"]["README.md"]


def test_the_function_pushes_what_the_command_does(search: str, hub: Hub) -> None:
    import evosearch as package

    report = package.push(search, "me/lora", format="adapter", candidate="3", save_modules=True, private=False)
    assert (report.url, report.commit, report.candidate) == (f"{hub.url}/me/lora", COMMIT, "3")
    assert hub.private is False
    assert hub.repos["me/lora"].keys() == report.files.keys()
    assert "adapter_model.safetensors" in report.files


def test_nothing_is_sent_without_the_word(
    search: str, hub: Hub, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3")
    assert code == 2
    assert "--yes: an upload needs a confirmation, and nobody can be asked here. Pass --yes" in err
    assert hub.seen == []

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3")
    assert code == 1
    assert f"not pushed to {hub.url}/me/merged: not confirmed" in err
    assert {method for method, _, _ in hub.seen} <= {"GET", "HEAD"}
    assert hub.repos == {}


def test_the_token_goes_only_to_a_hub_that_the_user_named(
    search: str, hub: Hub, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3", "--yes")
    assert code == 2
    assert "Your Hugging Face token was not sent" in err
    assert hub.seen == []


def test_wrong_input_is_one_error(
    search: str, hub: Hub, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("merged", "HUB_ID: got 'merged'"), ("me/a b", "HUB_ID: "), ("../x", "HUB_ID: ")):
        code, _, err = evosearch("push", search, name, "--candidate", "3", "--yes")
        assert code == 2
        assert text in err
    assert hub.seen == []
    hub.refuse = True
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3", "--yes")
    assert code == 2
    assert "me/merged: the hub refuses the token (403)" in err
    assert TOKEN not in err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3", "--yes")
    assert code == 2
    assert "HF_TOKEN: no token for the hub" in err


def test_an_upload_that_fails_is_one_error_and_says_why(search: str, hub: Hub, evosearch: Evosearch) -> None:
    hub.storage.status = 400
    code, _, err = evosearch("push", search, "me/merged", "--candidate", "3", "--yes")
    assert code == 1
    assert f"me/merged: upload to {hub.url} failed: " in err
    assert "Traceback" not in err
    assert hub.repos == {"me/merged": {}}, "a commit is all files or none"
