"""The hub's token goes only to the endpoint that the user named, also if that redirects."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from evosearch.checkpoints.references import resolve
from evosearch.errors import CheckpointError

from .conftest import ELSEWHERE, Listener, ask_for_account

TOKEN = "hf_hunter2ofthehub"
COMMIT = "1" * 40
INFO = f'{{"id": "org/name", "sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}]}}'

TREE = f'[{{"type": "file", "path": "config.json", "size": 2, "oid": "{COMMIT}"}}]'


@pytest.mark.parametrize("what", ["everything", "files"])
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_does_not_carry_the_token(
    listening: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, what: str
) -> None:
    attacker = listening(ask_for_account)

    def hub(client: socket.socket, listener: Listener) -> None:
        path = listener.take(client).split(b" ")[1].decode()
        redirect = f"HTTP/1.1 {code} Moved\r\nLocation: http://{ELSEWHERE}:{attacker.port}{path}\r\nETag: x\r\n"
        redirect += f"X-Repo-Commit: {COMMIT}\r\nX-Linked-Size: 2\r\nX-Linked-ETag: x\r\nContent-Length: 0\r\n"
        body = TREE if "/tree/" in path else INFO
        found = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        answer = f"{found}Connection: close\r\n\r\n{body}" if what == "files" and "/api/" in path else f"{redirect}\r\n"
        client.sendall(answer.encode())

    endpoint = f"http://127.0.0.1:{listening(hub, host='127.0.0.1').port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # huggingface_hub reads the environment when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    try:
        with contextlib.suppress(CheckpointError):
            resolve("org/name", tmp_path)
    finally:
        close_session()
    assert attacker.connections > 0
    assert b"authorization" not in attacker.received.lower()
    assert TOKEN.encode() not in attacker.received
