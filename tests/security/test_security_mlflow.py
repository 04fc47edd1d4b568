"""The user's MLflow account goes only to a tracking server that the user named; an attacker's server asks for it."""

import base64
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.errors import InputError
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.spec import load_spec
from evosearch.tracking.access import check_read_access
from evosearch.tracking.accounts import kept_account
from evosearch.tracking.client import connect
from evosearch.tracking.ui import ui_command, ui_environment

from .conftest import COMMANDS, ELSEWHERE, Listener, ask_for_account, ask_for_cleartext

Listening = Callable[..., Listener]
Program = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
USER, PASSWORD, TOKEN, NETRC = "alice-of-mlflow", "hunter2-of-mlflow", "token-of-mlflow", "hunter2-of-netrc"
SECRETS = [text.encode() for text in (PASSWORD, TOKEN, USER, NETRC)]
SECRETS += [base64.b64encode(text.encode()) for text in (f"{USER}:{PASSWORD}", f"anyone:{NETRC}")]
NAMED = "127.0.0.1"

# As in test_security_postgres.py, with what is special in web addresses; {p} is the port of both servers
ADDRESSES = [
    "http://127.0.0.2:{p}",
    "http://127.0.0.2.:{p}",
    "HTTP://127.0.0.2:{p}",
    "http:127.0.0.2:{p}",
    "http:/127.0.0.2:{p}",
    "http:///127.0.0.2:{p}",
    "http:\\\\127.0.0.2:{p}",
    "http://127.2:{p}",
    "http://127.0.2:{p}",
    "http://0177.0.0.2:{p}",
    "http://0x7f.0.0.2:{p}",
    "http://0x7f000002:{p}",
    "http://2130706434:{p}",
    "http://017700000002:{p}",
    "http://[::ffff:127.0.0.2]:{p}",
    "http://[::FFFF:7f00:2]:{p}",
    "http://[0:0:0:0:0:ffff:7f00:2]:{p}",
    "http://[::ffff:127.0.0.2%25lo]:{p}",
    "http://127.0.0.1@127.0.0.2:{p}",
    "http://127.0.0.1:{p}@127.0.0.2:{p}",
    "http://127.0.0.1%40127.0.0.2:{p}",
    "http://127.0.0.1\\@127.0.0.2:{p}",
    "http://127.0.0.2\\@127.0.0.1:{p}",
    "http://127.0.0.2:{p}\\127.0.0.1:{p}",
    "http://127.0.0.2:{p}/http://127.0.0.1:{p}",
    "http://127.0.0.2:{p}#@127.0.0.1:{p}",
    "http://127.0.0.2:{p}#http://127.0.0.1:{p}",
    "http://127.0.0.2:{p}?@127.0.0.1:{p}",
    "http://127.0.0.2:{p}/?http://127.0.0.1:{p}",
    "http://127.0.0.2:{p};127.0.0.1:{p}",
    "http://127.0.0.2:0{p}",
    "http://127.0.0.2:{p} @127.0.0.1:{p}",
    "http://127.0.0.1 .127.0.0.2:{p}",
    "http://127.0.0.2\t:{p}",
    "http://127.0.0.2\n:{p}",
    " http://127.0.0.2:{p}",
    "http://127.0.0.2%00.127.0.0.1:{p}",
    "http://127.0.0.2%2e127.0.0.1:{p}",
    "http://127.0.0.1.127.0.0.2:{p}",
    "http://127。0。0。2:{p}",
    "http://１２７.0.0.2:{p}",
    "http://①②⑦.⓪.⓪.②:{p}",
    "http://127.0.0.2\u200b:{p}",
    "https://127.0.0.2:{p}",
    "https://127.0.0.1:{p}@127.0.0.2:{p}",
    "databricks://127.0.0.2:{p}",
    "mysql://127.0.0.2:{p}/db",
    "mysql+pymysql://127.0.0.1/db?host=127.0.0.2",
    "mssql+pyodbc:///?odbc_connect=SERVER%3D127.0.0.2",
]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user has every kind of account, and a default entry in ~/.netrc."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "netrc").write_text(f"default login anyone password {NETRC}\n")
    (tmp_path / "netrc").chmod(0o600)


@pytest.fixture
def attacker(listening: Listening, monkeypatch: pytest.MonkeyPatch, account: None) -> Listener:
    """An attacker's server, at the port of the user's on another address."""
    found = listening(ask_for_account)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{NAMED}:{found.port}")
    return found


def got_nothing(listener: Listener) -> None:
    for secret in SECRETS:
        assert secret not in listener.received
    assert b"authorization" not in listener.received.lower()


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_spelling_of_an_address_gets_the_account(attacker: Listener, address: str) -> None:
    uri = address.format(p=attacker.port)
    for ask in (lambda: check_read_access(uri, "night", None), lambda: connect(uri).search_experiments(max_results=1)):
        with contextlib.suppress(Exception):  # whatever MLflow makes of it
            ask()
    got_nothing(attacker)


def test_spellings_reach_the_attacker(attacker: Listener) -> None:
    for host in ("127.0.0.2", "127.2", "0x7f000002", "2130706434", "0177.0.0.2", "[::ffff:127.0.0.2]"):
        before = attacker.connections
        with pytest.raises(InputError, match="Your MLflow account was not sent"):
            check_read_access(f"http://{host}:{attacker.port}", "night", None)
        assert attacker.connections > before, host
    got_nothing(attacker)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "EVOSEARCH_HOSTS"])
def test_a_named_server_gets_the_account(
    attacker: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """The listener would see it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv(variable, f"HTTP://user@{ELSEWHERE}:{attacker.port}/path")
    (tmp_path / "netrc").unlink()  # which `requests` prefers to an account
    with pytest.raises(InputError, match="not authenticated"):
        check_read_access(f"http://{ELSEWHERE}:{attacker.port}", "night", None)
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()) in attacker.received


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_carries_nothing(
    attacker: Listener, listening: Listening, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    def redirect(client: socket.socket, listener: Listener) -> None:
        listener.take(client)
        place = f"http://{ELSEWHERE}:{attacker.port}/"
        client.sendall(f"HTTP/1.1 {code} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())

    (tmp_path / "netrc").unlink()
    users = listening(redirect, host=NAMED)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{NAMED}:{users.port}")
    with pytest.raises(InputError):
        check_read_access(f"http://{NAMED}:{users.port}", "night", None)
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()) in users.received
    assert attacker.received == b""


@pytest.mark.parametrize(
    "place",
    [
        "http://{0}:{1}/api/2.0/mlflow-artifacts/artifacts/x",
        "mlflow-artifacts://{0}:{1}/x",
        "file:///tmp/x",
        "s3://bucket/x",
    ],
)
def test_artifacts_elsewhere_get_no_account(attacker: Listener, tmp_path: Path, place: str) -> None:
    """A tracking server names the storage of artifacts; MLflow would send the account there too."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = place.format(ELSEWHERE, attacker.port)
    unnamed = f"http://{ELSEWHERE}:{attacker.port}"
    connect(unnamed)
    refused = not uri.startswith("mlflow")
    with pytest.raises(Exception, match="only a server that you named may choose" if refused else "."):
        get_artifact_repository(uri, tracking_uri=unnamed).download_artifacts("x.yaml", str(tmp_path))
    if uri.startswith(("http", "mlflow")):  # others may be used by the user's own server
        with contextlib.suppress(Exception):
            get_artifact_repository(uri, os.environ["MLFLOW_TRACKING_URI"]).download_artifacts("x.yaml", str(tmp_path))
        assert attacker.connections > 0
    got_nothing(attacker)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sends_it_to_a_server_of_a_file(
    attacker: Listener,
    listening: Listening,
    world: World,
    evosearch: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5ec4e7" * 10)  # without one, `submit` asks no dashboard
    spec = world(tracking={"uri": f"http://{ELSEWHERE}:{attacker.port}"})
    named = listening(ask_for_account, host=NAMED)  # Ray's dashboard, for `submit`
    more: dict[str, tuple[object, ...]] = {
        "export": ("--candidate", "0", "--format", "recipe", "-o", tmp_path / "out"),
        "submit": ("--address", f"http://{NAMED}:{named.port}"),
    }
    if command in ("status", "leaderboard", "stop"):  # of a search that has such a server on record
        data = {"tracking": {"uri": f"http://{ELSEWHERE}:{attacker.port}"}}
        with Ledger.open(f"sqlite:///{tmp_path}/runs/world/ledger.db") as ledger:
            ledger.append("one", [("started", {"name": "world", "spec": data, "budget": {}, "resumed": False})])
    names = () if command == "status" else (spec,)
    _, out, err = evosearch(command, *names, *more.get(command, ()))
    got_nothing(attacker)
    assert PASSWORD not in out + err
    assert (named.connections > 0) == (command == "submit")
    if command in ("check", "run"):
        assert attacker.connections > 0
        assert f"EVOSEARCH_HOSTS=http://{ELSEWHERE}:{attacker.port}" in " ".join((out + err).split())


def test_a_database_of_mlflow_gets_no_password(
    listening: Listening, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PostgreSQL tracking store is opened by MLflow, in this process by a search and in another one by `ui`."""
    found = listening(ask_for_cleartext)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGHOST", NAMED)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "1")
    monkeypatch.delenv("PGPASSFILE", raising=False)
    uri = f"postgresql://me@{ELSEWHERE}:{found.port}/db"
    assert "Your PostgreSQL password was not sent" in str(kept_account(uri))
    program = f"import sqlalchemy as sa; sa.create_engine({uri!r}).connect()"
    assert ui_command(uri)
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | ui_environment(uri), capture_output=True, check=False
    )
    assert b'"scram-sha-256' in done.stderr
    assert found.connections > 0
    assert PASSWORD.encode() not in found.received
    for setting in ("hostaddr=127.0.0.2", "passfile=/x"):
        with pytest.raises(InputError, match=r"tracking\.uri"):
            load_spec(world(tracking={"uri": f"{uri}?{setting}"}))
        with pytest.raises(InputError, match=r"tracking\.uri"):
            connect(f"{uri}?{setting}")
