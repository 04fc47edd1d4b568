"""A ledger on PostgreSQL: messages when it cannot be opened, and databases of other programs."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from evosearch.errors import LedgerError
from evosearch.evaluation.types import ItemBatch, ItemSet
from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.store import check_server, metadata

if TYPE_CHECKING:
    from evosearch.devcluster.postgres import Postgres

TABLES = {table.name for table in metadata.sorted_tables}


def database_of(url: str) -> str:
    return url.rsplit("/", 1)[1]


def tables(postgres: "Postgres", url: str) -> set[str]:
    with postgres.connect(database_of(url)) as connection:
        return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


@pytest.fixture
def guest(postgres: "Postgres") -> Iterator[str]:
    """Name and password of a user with permission only to connect."""
    with postgres.connect() as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'open-sesame'")
    yield "guest:open-sesame"
    with postgres.connect() as connection:
        connection.execute("DROP ROLE guest")


def test_errors_of_a_server_that_cannot_be_opened(postgres_url: str, guest: str) -> None:
    server, database = postgres_url.rsplit("/", 1)
    at = server.rsplit("@", 1)[1]
    port = int(at.rsplit(":", 1)[1])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        nobody = unused.getsockname()[1]
        cases = {
            f"postgresql://evosearch:open-sesame@{at}/{database}": (
                r"password authentication failed for user \"evosearch\"",
                rf"Add the line 127\.0\.0\.1:{port}:{database}:evosearch:PASSWORD to ~/\.pgpass, .*mode 0600",
            ),
            f"postgresql://guest@{at}/{database}": ("no password supplied", r"\$PGPASSFILE names"),
            f"postgresql://{guest}@{at}/nowhere": (
                'database "nowhere" does not exist',
                rf"Create it: createdb -h 127\.0\.0\.1 -p {port} nowhere",
            ),
            f"postgresql://{guest}@{at}/{database}": (
                "permission denied for schema public",
                "Create a database for this user: createdb .* -O guest NAME",
            ),
            f"postgresql://{guest}@nowhere.invalid/{database}": ("nowhere.invalid", "Check the host name"),
            f"postgresql://{guest}@127.0.0.1:{nobody}/{database}": (
                f"port {nobody} failed: Connection refused",
                "Check that the server is running and accepts connections from this host: psql",
            ),
            f"postgresql://{guest}@localhost:{nobody}/{database}": (
                f"port {nobody} failed: Connection refused",
                "Check that the server is running",
            ),
            f"postgresql://{guest}@{at}/{database}?sslcert=open-sesame&nonsense=1": (
                r"got the setting 'sslcert'\. One host, and of settings only application_name",
                "variables",
            ),
        }
        for url, (what, next) in cases.items():
            began = time.monotonic()
            with pytest.raises(LedgerError, match=f"^night.yaml: ledger: .*{what}.*{next}") as caught:
                Ledger.open(url, "night.yaml: ledger")
            assert time.monotonic() - began < 10.0, "what the user has to mend is not tried again"
            assert "open-sesame" not in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", ["public", "theirs"])
def test_another_programs_database_is_left_alone(postgres: "Postgres", postgres_url: str, schema: str) -> None:
    with postgres.connect(database_of(postgres_url)) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        connection.execute(f"CREATE TABLE {schema}.experiments (id int)")
    shown = "experiments" if schema == "public" else r"theirs\.experiments"
    for read_only in (False, True):
        with pytest.raises(LedgerError, match=rf"no ledger, only other tables: {shown}\. .*: createdb evosearch\."):
            Ledger.open(postgres_url, read_only=read_only)
    assert tables(postgres, postgres_url) <= {"experiments"}


def test_an_empty_database_is_not_a_ledger_and_may_become_one(postgres: "Postgres", postgres_url: str) -> None:
    with pytest.raises(NoLedgerError, match=r"has no ledger\. Run a search first"):
        Ledger.open(postgres_url, read_only=True)
    assert tables(postgres, postgres_url) == set()
    check_server(postgres_url, "night.yaml: ledger")
    assert tables(postgres, postgres_url) == set(), "a check creates nothing"
    with Ledger.open(postgres_url) as ledger:
        assert ledger.searches() == []
    assert tables(postgres, postgres_url) == TABLES
    check_server(postgres_url, "night.yaml: ledger")
    with postgres.connect(database_of(postgres_url)) as connection:
        connection.execute("CREATE TABLE experiments (id int)")
    Ledger.open(postgres_url).close()  # other tables do not matter once there is a ledger


def test_a_database_that_cannot_hold_every_character(postgres: "Postgres") -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(
            LedgerError, match=r"/latin has the encoding LATIN1\. UTF8\. Create another: createdb -E UTF8"
        ):
            Ledger.open(postgres.url("latin"))
    finally:
        postgres.drop_database("latin")


def test_many_processes_create_the_tables_of_an_empty_database(postgres: "Postgres", postgres_url: str) -> None:
    together = threading.Barrier(8)

    def come(_: int) -> list[Any]:
        together.wait()
        with Ledger.open(postgres_url) as ledger:
            return ledger.searches()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(come, range(8))) == [[]] * 8
    assert tables(postgres, postgres_url) == TABLES


def test_many_count_openings_and_put_item_sets_at_once(postgres_url: str) -> None:
    sets = tuple(ItemSet(f"task{i}", "evo", (i,), (f"{i}",), ("x",)) for i in range(20))
    together = threading.Barrier(6)

    def open_test_set(index: int) -> int:
        with Ledger.open(postgres_url) as ledger:
            together.wait()
            ledger.put_item_sets(ItemBatch("search", sets if index % 2 else sets[::-1]))
            return ledger.record_test_opening(f"search {index}", "digest", ["base", "7"])

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(open_test_set, range(6))) == [1, 2, 3, 4, 5, 6]
    with Ledger.open(postgres_url, read_only=True) as ledger:
        assert ledger.count_test_openings("digest") == 6
        assert ledger.item_set(sets[7].digest) == sets[7]


def test_a_reader_cannot_write(postgres_url: str) -> None:
    with Ledger.open(postgres_url) as ledger:
        ledger.append("one", [("started", {"name": "night"})])
    with Ledger.open(postgres_url, read_only=True) as reader:
        assert [info.name for info in reader.searches()] == ["night"]
        with pytest.raises(AssertionError, match="opened read-only"):
            reader.append("one", [("asked", {})])
        setting = sa.text("SHOW default_transaction_read_only")
        assert reader._database.read(lambda connection: connection.scalar(setting)) == "on"


def test_a_read_only_user_may_read(postgres: "Postgres", postgres_url: str, guest: str) -> None:
    with Ledger.open(postgres_url) as ledger, ledger.acquire("one"):
        ledger.append("one", [("started", {"name": "night"})])
        with postgres.connect(database_of(postgres_url)) as connection:
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
        url = postgres_url.replace("evosearch@", f"{guest}@")
        with Ledger.open(url, read_only=True) as reader:
            assert len(reader.events("one")) == 1
            assert f"process {os.getpid()} on" in str(reader.holder("one")), "others' connections are seen in part"
        writer = Ledger.open(url)
        with pytest.raises(LedgerError, match=r"permission denied.*Create a database for this user"):
            writer.append("two", [("started", {})])
        writer.close()
    with postgres.connect(database_of(postgres_url)) as connection:
        connection.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM guest")


def test_a_full_disk_is_reported_as_that_of_a_file(postgres: "Postgres", postgres_url: str) -> None:
    with Ledger.open(postgres_url) as ledger:
        ledger.append("one", [("started", {"name": "night"})])
        with postgres.connect(database_of(postgres_url)) as connection:
            connection.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION"
                " 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"
            )
            connection.execute("CREATE TRIGGER f BEFORE INSERT ON ledger_events EXECUTE FUNCTION full_disk()")
        with pytest.raises(LedgerError, match=r"No space left on device\. Free disk space, then run the same"):
            ledger.append("one", [("asked", {})])
        with postgres.connect(database_of(postgres_url)) as connection:
            connection.execute("DROP TRIGGER f ON ledger_events")
        assert [event.seq for event in ledger.append("one", [("asked", {})])] == [2]


def test_a_dead_host_is_noticed_by_the_server_and_by_us(postgres: "Postgres", postgres_url: str) -> None:
    """Both ends of the locking connection probe each other: a lock outlives its host by half a minute."""
    with Ledger.open(postgres_url) as ledger, ledger.acquire("one"):
        probes = {"tcp_keepalives_idle": "15", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
        for name, value in (probes | {"tcp_user_timeout": "30000"}).items():
            assert ledger._database.write(lambda c, name=name: c.exec_driver_sql(f"SHOW {name}").scalar()) == value
        ours: dict[int, int] = {}
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT):
            with socket.socket(fileno=os.dup(ledger._database._driver.fileno())) as end:
                ours[option] = end.getsockopt(socket.IPPROTO_TCP, option)
        assert list(ours.values()) == [15, 5, 3, 30_000]
        with postgres.connect() as connection:
            query = "SELECT application_name FROM pg_stat_activity WHERE datname = %s"
            names = {row[0] for row in connection.execute(query, (database_of(postgres_url),))}
        assert names == {f"evosearch {os.getpid()} on {socket.gethostname()}"[:63]}
