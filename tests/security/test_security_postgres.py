"""The user's database password goes only to a server that the user named; an attacker's server asks for it in clear."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from evosearch import origins
from evosearch.errors import InputError, LedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.server_access import QUERY_KEYS
from evosearch.spec.spec import load_spec

from .conftest import COMMANDS, ELSEWHERE, Listener, ask_for_account, ask_for_cleartext

Listening = Callable[..., Listener]
Program = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
SECRET = "hunter2-of-postgres"
NAMED = "127.0.0.1"  # the host that the user named

# What a file may write as a host to reach 127.0.0.2, or to make one reader see 127.0.0.1 and another 127.0.0.2
HOSTS = [
    "127.0.0.2",
    "127.0.0.2.",
    "127.2",
    "127.0.2",
    "127.00.0.2",
    "0127.0.0.2",
    "0177.0.0.2",
    "0177.0.0.02",
    "0x7f.0.0.2",
    "0X7F.0.0.2",
    "0x7f.2",
    "0x7f000002",
    "0X7F000002",
    "2130706434",
    "017700000002",
    "127.0.0.0x2",
    "[::ffff:127.0.0.2]",
    "[::FFFF:7f00:2]",
    "[0:0:0:0:0:ffff:7f00:0002]",
    "[::ffff:127.0.0.2%lo]",
    "127.0.0.1@127.0.0.2",
    "127.0.0.1%40127.0.0.2",
    "x@127.0.0.1@127.0.0.2",
    "127.0.0.1,127.0.0.2",
    "127.0.0.2,127.0.0.1",
    "127.0.0.1%2c127.0.0.2",
    "127.0.0.1%20hostaddr=127.0.0.2",
    "127.0.0.1 hostaddr=127.0.0.2",
    "127.0.0.1'hostaddr='127.0.0.2",
    "127.0.0.1\\127.0.0.2",
    "127.0.0.1\\@127.0.0.2",
    "127.0.0.1\t127.0.0.2",
    "127.0.0.1\n127.0.0.2",
    "127.0.0.1%00127.0.0.2",
    "127.0.0.1#@127.0.0.2",
    "127.0.0.2#127.0.0.1",
    "127.0.0.2?@127.0.0.1",
    "127。0。0。2",  # full stops of other scripts
    "１２７.0.0.2",  # wide digits
    "①②⑦.0.0.2",
    "127.0.0.2\u200b",
    "127.0.0.1.127.0.0.2",
    "localhost@127.0.0.2",
    "LOCALHOST.@127.0.0.2",
]
# The same by settings, with the host that the user named
SETTINGS = [
    "hostaddr=127.0.0.2",
    "HOSTADDR=127.0.0.2",
    "host=127.0.0.2",
    "host=127.0.0.2:{port}",
    "host=127.0.0.1&host=127.0.0.2",
    "hostaddr=127.0.0.2&sslmode=disable",
    "passfile={passfile}",
    "service=evil",
    "servicefile={passfile}",
    "options=-c%20x",
    "require_auth=password",
    "password=x",
    "sslmode=disable&sslmode=require",
    "target_session_attrs=any&hostaddr=127.0.0.2",
    "dbname=host%3D127.0.0.2",
    "user=x&hostaddr=127.0.0.2",
    "sslkey=/etc/passwd",
    "krbsrvname=x",
    "gssdelegation=1",
]


@pytest.fixture
def attacker(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """An attacker's server; the user has a password for the same port of another address."""
    found = listening(ask_for_cleartext)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("PGHOST", NAMED)
    monkeypatch.setenv("PGPORT", str(found.port))
    monkeypatch.delenv("PGPASSFILE", raising=False)
    return found


def open_ledger(url: str) -> str:
    with pytest.raises(InputError) as caught:
        Ledger.open(url, "night.yaml: ledger")
    return str(caught.value)


def test_a_server_of_the_user_would_get_it_in_clear(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack works on libpq itself, so the other tests can fail."""
    import psycopg

    found = listening(ask_for_cleartext)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"postgresql://me@{ELSEWHERE}:{found.port}/db")
    assert SECRET.encode() in found.received


@pytest.mark.parametrize("host", HOSTS)
def test_no_spelling_of_a_host_gets_the_password(attacker: Listener, host: str) -> None:
    said = open_ledger(f"postgresql://me@{host}:{attacker.port}/db")
    assert SECRET.encode() not in attacker.received
    assert SECRET not in said


def test_spellings_reach_the_attacker(attacker: Listener) -> None:
    """Several of them connect: the table is not refused as a whole for another reason."""
    for host in ("127.0.0.2", "127.2", "0x7f000002", "2130706434", "0177.0.0.2", "[::ffff:127.0.0.2]"):
        before = attacker.connections
        assert "Your PostgreSQL password was not sent" in open_ledger(f"postgresql://me@{host}:{attacker.port}/db")
        assert attacker.connections > before, host


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("named", [True, False])
def test_no_setting_moves_the_password(
    attacker: Listener, tmp_path: Path, world: World, setting: str, named: bool
) -> None:
    passfile = tmp_path / "passfile"
    passfile.write_text(f"*:*:*:*:{SECRET}\n")
    passfile.chmod(0o600)
    host = NAMED if named else ELSEWHERE
    url = f"postgresql://me@{host}:{attacker.port}/db?{setting.format(port=attacker.port, passfile=passfile)}"
    open_ledger(url)
    with pytest.raises(InputError, match=r"world\.yaml: ledger"):
        load_spec(world(ledger=url))
    assert attacker.connections == 0


@pytest.mark.parametrize("password", ["in the file", "in the environment"])
@pytest.mark.parametrize("name", ["db", "*", "127.0.0.1"])
def test_a_password_file_counts_for_its_own_hosts(
    attacker: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, password: str
) -> None:
    passfile = tmp_path / "passfile"
    passfile.write_text(f"# hosts\n{name}:*:*:*:{SECRET}\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    if password == "in the file":
        monkeypatch.delenv("PGPASSWORD")
    said = open_ledger(f"postgresql://me@{ELSEWHERE}:{attacker.port}/db")
    assert attacker.connections > 0
    assert SECRET.encode() not in attacker.received
    withheld = name == "*" or password != "in the file"
    assert ("Your PostgreSQL password was not sent" in said) == withheld


def test_even_a_named_server_gets_no_clear_password(attacker: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_HOSTS", f"postgresql://{ELSEWHERE}:{attacker.port}")
    said = open_ledger(f"postgresql://me@{ELSEWHERE}:{attacker.port}/db")
    assert 'authentication method requirement "scram-sha-256" failed' in said
    assert "PGREQUIREAUTH" in said
    assert attacker.connections > 0
    assert SECRET.encode() not in attacker.received
    monkeypatch.setenv("PGREQUIREAUTH", "password")  # the user's own decision
    open_ledger(f"postgresql://me@{ELSEWHERE}:{attacker.port}/db")
    assert SECRET.encode() in attacker.received


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sends_it_to_a_host_of_a_file(
    attacker: Listener,
    listening: Listening,
    world: World,
    evosearch: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    url = f"postgresql://me@{ELSEWHERE}:{attacker.port}/db"
    spec = world(ledger=url)
    if command == "status":
        (tmp_path / "runs" / "world").mkdir(parents=True)
        (tmp_path / "runs" / "world" / "ledger.url").write_text(f"{url}\n")
    more = {"export": ("--candidate", "0", "--format", "recipe", "-o", tmp_path / "out"), "ui": ("--json",)}
    named = listening(ask_for_account, host=NAMED)  # Ray's dashboard, for `submit`
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5ec4e7" * 10)  # without one, it asks no dashboard
    more["submit"] = ("--address", f"http://{NAMED}:{named.port}")
    names = () if command == "status" else (spec,)
    _, out, err = evosearch(command, *names, *more.get(command, ()))
    assert SECRET.encode() not in attacker.received
    assert SECRET not in out + err
    assert SECRET.encode() not in named.received
    if command == "submit":
        assert named.connections > 0
    elif command != "ui":  # for which the ledger is not read
        assert attacker.connections > 0
        assert f"EVOSEARCH_HOSTS=postgresql://{ELSEWHERE}:{attacker.port}" in " ".join((out + err).split())


def test_named_servers_get_it_by_scram(postgres_url: str, monkeypatch: pytest.MonkeyPatch, evosearch: Program) -> None:
    """On a real server, by each way of naming it; and by none of them otherwise."""
    url, passfile = sa.make_url(postgres_url), Path(os.environ["PGPASSFILE"])
    for name in ("EVOSEARCH_HOSTS", "PGHOST", "PGHOSTADDR", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSWORD", passfile.read_text().splitlines()[0].split(":")[4])
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    monkeypatch.setattr(origins, "_by_hand", set())  # other tests named this server on the command line
    said = open_ledger(postgres_url)
    assert f"EVOSEARCH_HOSTS=postgresql://{url.host}:{url.port} (or $PGHOST)" in said
    for variables in (
        {"PGHOST": url.host, "PGPORT": url.port},
        {"EVOSEARCH_HOSTS": f"http://mlflow:5000, postgresql://{url.host}:{url.port}"},
        {"PGHOST": f"db,{url.host}", "PGPORT": f"5432,{url.port}"},
        {"PGPASSFILE": passfile, "PGPASSWORD": ""},
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            Ledger.open(postgres_url).close()
    monkeypatch.setenv("EVOSEARCH_HOSTS", "db")
    assert open_ledger(postgres_url).startswith("EVOSEARCH_HOSTS: got 'db'. scheme://HOST:PORT of each server")
    monkeypatch.delenv("EVOSEARCH_HOSTS")
    code, _, err = evosearch("status", "--ledger", postgres_url)
    assert code == 0, err


def test_the_users_tls_is_not_weakened(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(LedgerError, match="server does not support SSL"):
        Ledger.open(f"{postgres_url}?sslmode=disable")
    monkeypatch.delenv("PGSSLMODE")
    Ledger.open(f"{postgres_url}?sslmode=prefer&{QUERY_KEYS[0]}=x").close()
