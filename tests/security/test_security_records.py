"""Records contain no secrets and no executable code: ledger, tracking store, exports, logs."""

import base64
import html
import os
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

World = Callable[..., Path]
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "canary-user-5d1f",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-9c2e",
    "MLFLOW_TRACKING_TOKEN": "canary-bearer-71aa",
    "PGPASSWORD": "canary-postgres-40b7",
    "HF_TOKEN": "canary-hub-e83d",
    "RAY_AUTH_TOKEN": "canary-ray-16f0",
    "AWS_SECRET_ACCESS_KEY": "canary-s3-b2c4",
}
INERT = {".yaml", ".yml", ".json", ".jsonl", ".safetensors", ".md", ".jinja", ".model", ".txt", ".db", ".parquet", ""}


class Refusing(ThreadingHTTPServer):
    """A server that refuses every account, as MLflow's server does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.given: list[str] = []


class _Refuse(BaseHTTPRequestHandler):
    server: Refusing

    def do_GET(self) -> None:
        self.server.given.append(self.headers.get("Authorization", ""))
        body = b"You are not authenticated. Please see the documentation on how to authenticate."
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 (named by the library)

    def log_message(self, *arguments: object) -> None:
        """Print nothing: the test reads standard error."""


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_search_leaves_no_secret_and_nothing_that_runs(world: World, tmp_path: Path) -> None:
    spec = world(
        budget={"candidates": 6},
        tracking={"uri": f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"},
        promotion={"finalists": 2, "register_as": "world", "checkpoint": True},
    )
    printed = _evosearch(spec, "run", str(spec), "--json")
    for form in ("recipe", "mergekit", "checkpoint"):
        out = tmp_path / "exports" / (form if form == "checkpoint" else f"{form}.yaml")
        printed += _evosearch(spec, "export", "world", "--candidate", "0", "--format", form, "-o", str(out))
    printed += _evosearch(spec, "status") + _evosearch(spec, "leaderboard", "world")

    files = [path for folder in ("runs", "exports") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".db", ".yaml", ".safetensors"}, "the search left its records"
    found = {str(path): path.read_bytes() for path in files}
    found["what was printed"] = printed
    found["the ledger, unpacked"] = _unpacked(tmp_path / "runs" / "world" / "ledger.db")
    for where, content in found.items():
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {where}"

    for path in files:
        if path.name == "report.html":  # its scripts are known by hash, and reach no address
            assert "default-src 'none'; script-src 'sha256-" in html.unescape(path.read_text("utf-8")), path
        else:
            assert path.suffix in INERT, path
        assert not os.access(path, os.X_OK), path
        assert not _is_pickle(path), path


@pytest.mark.slow
def test_a_database_that_refuses_a_password_leaves_none(
    world: World, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "password authentication failed"
    spec = world(ledger=postgres_url)
    monkeypatch.setenv("EVOSEARCH_HOSTS", postgres_url)  # otherwise the server gets no password
    printed = _evosearch(spec, "run", str(spec), refused=said)
    printed += _evosearch(spec, "status", "--ledger", postgres_url, refused=said)
    _holds_no_secret(printed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Basic", "Bearer"])
def test_a_server_that_refuses_an_account_leaves_none(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: Refusing, kind: str
) -> None:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    account = ":".join(SECRETS[name] for name in names)
    for name in names if kind == "Bearer" else ("MLFLOW_TRACKING_TOKEN",):
        monkeypatch.delitem(SECRETS, name)
    spec = world(tracking={"uri": f"http://127.0.0.1:{refusing.server_port}"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{refusing.server_port}")
    printed = _evosearch(spec, "run", str(spec), refused="You are not authenticated")
    encoded = base64.b64encode(account.encode()).decode()
    sent = SECRETS["MLFLOW_TRACKING_TOKEN"] if kind == "Bearer" else encoded
    assert set(refusing.given) == {f"{kind} {sent}"}, "the server was queried with the secret"
    assert encoded.encode() not in printed
    _holds_no_secret(printed, tmp_path)


def _holds_no_secret(printed: bytes, folder: Path) -> None:
    found = {str(path): path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    for where, content in {**found, "what was printed": printed}.items():
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {where}"


def _evosearch(spec: Path, *arguments: str, refused: str = "") -> bytes:
    """Run a command, whatever the gate decides; return everything it prints.

    Args:
        refused: Expected message if the command must be refused.
    """
    command = [sys.executable, "-m", "evosearch.cli.main", *arguments]
    environment = {**os.environ, **SECRETS, "OMP_NUM_THREADS": "1"}
    if refused:
        environment.pop("PGPASSFILE", None)  # its file would grant access
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode in ((2,) if refused else (0, 3)), done.stderr.decode()
    assert refused in done.stderr.decode()
    return done.stdout + done.stderr


def _unpacked(ledger: Path) -> bytes:
    """Return the blobs of the ledger, decompressed, and its events."""
    with sqlite3.connect(ledger) as connection:
        rows = connection.execute(
            "SELECT data FROM ledger_item_sets UNION ALL SELECT data FROM ledger_scores"
        ).fetchall()
        events = connection.execute("SELECT payload FROM ledger_events").fetchall()
    assert rows
    assert events
    return b"".join([*(zlib.decompress(data) for (data,) in rows), *(payload.encode() for (payload,) in events)])


def _is_pickle(path: Path) -> bool:
    """Detect a pickle of protocol 2 or later, alone or in a zip archive as torch writes it."""
    head = path.read_bytes()[:4]
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or head == b"PK\x03\x04"
