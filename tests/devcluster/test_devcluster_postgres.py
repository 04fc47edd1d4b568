"""The private PostgreSQL server: one folder, a password in a file, and no data lost in a crash."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from evosearch.devcluster import postgres as module
from evosearch.devcluster.postgres import Postgres
from evosearch.errors import InputError, SearchError


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """A server for this test; the fixture `postgres` skips the test if PostgreSQL is not available."""
    folder = postgres.folder.with_name(f"{postgres.folder.name}-own")
    own = Postgres(folder)
    yield own
    own.stop()
    module.shutil.rmtree(folder, ignore_errors=True)


def test_data_survives_the_object_a_stop_and_a_crash(server: Postgres) -> None:
    server.start(die_with_parent=True)
    server.start()
    server.create_database("night")
    server.create_database("night")
    with server.connect("night") as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    again = Postgres(server.folder)
    assert (again.running, again.url("night")) == (True, server.url("night"))
    again.crash()
    assert (server.running, again.running) == (False, False)
    server.start(die_with_parent=True)
    assert server.url("night") == again.url("night"), "it keeps its port"
    with server.connect("night") as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]
    again.stop()
    assert not server.running
    server.stop()


def test_connections_require_the_password(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start(durable=False, die_with_parent=True)
    url, password = server.url("postgres"), server.passfile.read_text().strip().rsplit(":", 1)[1]
    assert stat.S_IMODE(server.passfile.stat().st_mode) == 0o600
    assert password not in url
    assert len(password) >= 24
    assert not (server.folder / "password").exists(), "initdb's password file is removed"
    monkeypatch.delenv("PGPASSFILE")
    monkeypatch.setenv("HOME", str(server.folder))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(url)
    monkeypatch.setenv("PGPASSFILE", str(server.passfile))
    psycopg.connect(url).close()
    listening = [
        (found.laddr.ip, found.laddr.port)
        for found in psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0])).net_connections()
        if found.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", server.port)]
    with server.connect() as connection:
        assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)


def test_connections_are_dropped(server: Postgres) -> None:
    server.start(durable=False, die_with_parent=True)
    server.create_database("night")
    first, second = server.connect("night"), server.connect("night")
    assert server.drop_connections("night") == 2
    for connection in (first, second):
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.drop_database("night")
    server.drop_database("night")


def test_errors_of_a_failed_start(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start(durable=False, die_with_parent=True)
    with pytest.raises(InputError, match=rf"port {server.port} is in use.*Choose another port"):
        Postgres(server.folder / "two", server.port).start()
    assert not (server.folder / "two" / "data").exists(), "checked before anything is created"
    server.stop()
    kept = server.passfile.read_text()
    server.passfile.unlink()
    with pytest.raises(InputError, match=r"passfile is missing.*Restore it"):
        server.start()
    server.passfile.write_text(kept)
    configuration = server.data / "postgresql.conf"
    configuration.write_text(configuration.read_text() + "\nmax_connections = lots\n")
    with pytest.raises(SearchError, match=r"PostgreSQL ended\. .*log:\n[^$]*max_connections"):
        server.start()
    monkeypatch.setattr(module, "find_programs", lambda: None)
    with pytest.raises(InputError, match=r"initdb, postgres.* not installed.*apt-get install postgresql"):
        server.start()


def test_a_stale_pid_of_another_server_is_ignored(server: Postgres, postgres: Postgres, tmp_path: Path) -> None:
    """After a power failure `postmaster.pid` remains, and its pid may belong to another server by then."""
    other = Postgres(tmp_path / "other")
    other.data.mkdir(parents=True)
    (other.data / "postmaster.pid").write_text((postgres.data / "postmaster.pid").read_text())
    assert (postgres.running, other.running, other.process) == (True, False, None)
    other.stop()
    other.crash()
    assert postgres.running
    server.start(die_with_parent=True)
    server.crash()
    stale = server.data / "postmaster.pid"
    lines = stale.read_text().splitlines()
    stale.write_text("\n".join([str(postgres.process.pid if postgres.process else 0), *lines[1:]]))
    assert not server.running
    server.start(die_with_parent=True)  # although the pid in the file belongs to a server of another folder
    assert server.running
    assert postgres.running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server over to another user")
def test_a_folder_that_the_servers_user_cannot_traverse_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(InputError, match=r"the server's user, \w+, cannot traverse .*mode 700.*chmod o\+x"):
        Postgres(tmp_path / "closed" / "server").start()
