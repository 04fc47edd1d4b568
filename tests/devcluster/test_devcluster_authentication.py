"""The authentication checks of `benchmarks.cluster_proof`, against servers that reject or accept requests."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from benchmarks._cluster_proof import authentication
from benchmarks._cluster_proof.proof import ENDED, ClusterProof
from evosearch.devcluster import process_environment, ray_nodes
from evosearch.devcluster.cluster import LEDGER
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret
from evosearch.devcluster.processes import free_port, listening, start, wait_until
from evosearch.errors import SearchError


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Iterator[Postgres]:
    """A server for this module; the fixture `postgres` skips the tests if PostgreSQL is not available."""
    folder = Path(tempfile.mkdtemp(prefix="evosearch-authentication-"))
    folder.chmod(0o711)
    own = Postgres(folder / "postgres")
    own.start(durable=False, die_with_parent=True)
    own.create_database(LEDGER)
    yield own
    own.stop()
    shutil.rmtree(folder)


def test_postgresql_that_requires_a_password_passes(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", str(server.passfile))
    psycopg.connect(server.url(LEDGER)).close()
    authentication.check_postgres(server)


def test_postgresql_without_authentication_fails(server: Postgres) -> None:
    rules = server.data / "pg_hba.conf"
    kept = rules.read_text()
    rules.write_text("host all all 127.0.0.1/32 trust\n")
    with server.connect() as connection:
        connection.execute("SELECT pg_reload_conf()")
    where = f"host=127.0.0.1 port={server.port} user=evosearch dbname={LEDGER} passfile=/nowhere"
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:  # until the server has reloaded its rules
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(where).close()
                break
        with pytest.raises(SearchError, match="PostgreSQL, no password: connection accepted"):
            authentication.check_postgres(server)
    finally:
        rules.write_text(kept)
        server.stop()
        server.start(durable=False, die_with_parent=True)
    authentication.check_postgres(server)


def test_postgresql_that_does_not_answer_fails(server: Postgres) -> None:
    server.stop()
    with pytest.raises(SearchError, match=r"PostgreSQL, no password: .*[Cc]onnection refused"):
        authentication.check_postgres(server)
    server.start(durable=False, die_with_parent=True)


Answer = Callable[[bytes, grpc.ServicerContext], bytes]


class _Head(grpc.GenericRpcHandler):
    """Handler that answers a call like a head node."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == authentication.ALIVE else None


def check(answer: Answer) -> None:
    head = grpc.server(ThreadPoolExecutor(1), handlers=[_Head(answer)])
    port = head.add_insecure_port("127.0.0.1:0")
    head.start()
    try:
        authentication.check_gcs(f"127.0.0.1:{port}")
    finally:
        head.stop(None).wait()


def test_a_head_that_requires_a_token_passes() -> None:
    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        raise AssertionError

    seen: list[Any] = []
    check(refuse)
    assert seen == [None, f"Bearer {authentication.WRONG}"]


def test_a_head_that_accepts_no_token_or_any_token_fails() -> None:
    with pytest.raises(SearchError, match="Ray's head, no token: request accepted"):
        check(lambda request, context: b"")

    def any_token(request: bytes, context: grpc.ServicerContext) -> bytes:
        if "authorization" not in dict(context.invocation_metadata()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return b""

    with pytest.raises(SearchError, match="Ray's head, a wrong token: request accepted"):
        check(any_token)


def test_a_head_with_another_error_fails() -> None:
    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "another Ray")
        raise AssertionError

    with pytest.raises(SearchError, match=r"Ray's head, no token: StatusCode\.UNIMPLEMENTED: another Ray"):
        check(fail)


def test_metrics_without_a_token_are_found() -> None:
    from prometheus_client import start_http_server

    made, thread = start_http_server(0, "127.0.0.1")
    head = grpc.server(ThreadPoolExecutor(1))  # another protocol
    sockets = [("127.0.0.1", head.add_insecure_port("127.0.0.1:0"), "gcs_server")]
    head.start()
    try:
        authentication.check_metrics(sockets)
        with pytest.raises(
            SearchError, match=rf"agent serves metrics without credentials at 127.0.0.1:{made.server_port}/"
        ):
            authentication.check_metrics([*sockets, ("127.0.0.1", made.server_port, "agent")])
    finally:
        head.stop(None).wait()
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_serves_no_metrics(tmp_path: Path) -> None:
    """The head of `evosearch cluster`, with its dashboard, agent and autoscaler, and none of the other parts."""
    places, postgres = Places(tmp_path / "cluster"), Postgres(tmp_path / "postgres")
    places.make()
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "port").write_text("20003")
    ports = [free_port()]
    for _ in range(2):
        ports.append(free_port(taken=ports))
    state = State(ports=dict(zip(("mlflow", "ray", "dashboard"), ports, strict=True)))
    secret(places.token)
    settings = process_environment.of_nodes(places, state, postgres) | {"OMP_NUM_THREADS": "1"}
    log = places.log("head")
    head = start(ray_nodes.command(places, state, ray_nodes.HEAD), settings, places.folder, log)
    try:
        wait_until("head", lambda: ray_nodes.problem(places, state, ray_nodes.HEAD), head, log, 300.0)
        time.sleep(5)  # the agent starts its servers last
        found = listening(head.members())
        assert len(found) >= 4, found
        authentication.check_metrics(found)
    finally:
        head.stop()
        shutil.rmtree(state.ray_folder(places), ignore_errors=True)


@pytest.mark.parametrize("status", ENDED)
def test_the_proof_stops_waiting_for_a_job_that_has_ended(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = ClusterProof(tmp_path, print)
    monkeypatch.setattr(proof, "_job", lambda: {"status": status})
    with pytest.raises(SearchError, match=f"the search did not end well within 600 s; the job is {status}"):
        proof._wait(lambda: False, 600.0, "the search did not end well")
    assert set(ENDED) == {"FAILED", "STOPPED"}
