"""Requests to a fake cluster dashboard."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from evosearch.errors import ClusterError
from evosearch.execution.ray_jobs import QUEUE, Jobs

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
LOST = [{"state": "DEAD", "resources_total": {QUEUE: 1.0}}] * 150
LIVING = [{"state": "ALIVE", "resources_total": {"CPU": 8.0}}] * 150
HEAD = {"state": "ALIVE", "resources_total": {QUEUE: 2.0}}


class Dashboard(BaseHTTPRequestHandler):
    """Dashboard of a cluster with many nodes, the head last; limits and filters as in Ray."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found: list[dict[str, Any]] = [*LOST, *LIVING, HEAD]
        if "filter_keys" in query:
            assert query["filter_predicates"] == "="
            found = [node for node in found if node[query["filter_keys"]] == query["filter_values"]]
        limit = int(query.get("limit", 100))
        assert limit <= 10_000  # Ray rejects higher limits
        body = dumps(VERSION if url.path == "/api/version" else {"data": {"result": {"result": found[:limit]}}})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def url(ray_knows_its_mode: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_head_of_a_large_cluster_is_found_among_its_nodes(url: str) -> None:
    assert Jobs(url).capacity() == 2.0


@pytest.mark.parametrize("address", ["http://[::1:8265", "http://", "head:8265", "ray://head:10001"])
def test_an_invalid_dashboard_url_is_rejected(address: str) -> None:
    with pytest.raises(ClusterError) as caught:
        Jobs(address)
    assert str(caught.value) == f"--address: got '{address}'. The URL of a Ray dashboard: http://HOST:8265."
