"""Lookup of the cluster token, for joining and for submitting, in Ray's order."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from evosearch.errors import ClusterError
from evosearch.execution import token
from evosearch.execution.ray_jobs import Jobs
from evosearch.execution.ray_settings import has_token


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Home folder with a token; the environment has none."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")


def test_sources_are_searched_in_rays_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token.find() == "of-home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")  # as if it were not set
    assert token.find() == "of-home"
    (tmp_path / "named").write_text(" of-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert token.find() == "of-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " ")
    assert token.find() == "of-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert token.find() == "given"


@pytest.mark.parametrize("content", [None, " \n"])
def test_an_unreadable_or_empty_token_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "named").write_text(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    with pytest.raises((OSError, ValueError), match=r"No such file|the file is empty"):
        token.find()
    assert not has_token()
    with pytest.raises(ClusterError, match=rf"RAY_AUTH_TOKEN_PATH: cannot read {tmp_path}/named: .*(No such|empty)"):
        Jobs("http://127.0.0.1:9")


def test_no_token_is_sent_if_authentication_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a token is set, and although Ray has read another mode at import."""
    shown: list[str | None] = []

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            body = b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        Jobs(url)
        from ray._raylet import AuthenticationTokenLoader

        assert AuthenticationTokenLoader.instance().has_token()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        Jobs(url)
        server.shutdown()
    assert shown[0] == "Bearer of-home"
    assert set(shown) == {"Bearer of-home", ""}
