"""Servers of an attacker on another loopback address: they record every byte, and ask for every secret."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ELSEWHERE = "127.0.0.2"
REFUSAL = b"You are not authenticated."
HTTP_ANSWER = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 26\r\nWWW-Authenticate: Basic\r\nConnection: close\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the first frame of an HTTP/2 server, for which gRPC waits
COMMANDS = ("check", "run", "status", "leaderboard", "export", "ui", "stop", "submit")  # that read a spec
Talk = Callable[[socket.socket, "Listener"], None]


def write_suite(folder: Path, path: str, options: dict[str, Any], **keys: Any) -> Path:
    """Write a suite with one task of its own.

    Args:
        folder: For `s.yaml`, `tasks/t.yaml` and the datasets' cache.
        path: The task's `dataset_path`.
        options: Its `dataset_kwargs`.
        keys: Further keys of the suite.
    """
    task = {
        "task": "t_own",
        "dataset_path": path,
        "dataset_kwargs": {"cache_dir": str(folder / "cache"), **options},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "t.yaml").write_text(yaml.safe_dump(task))
    data = {"name": "s", "include": ["tasks"], "tasks": [{"task": "t_own", "metric": "acc", "chance": 0.3}]}
    data |= {"documents": {"search": 2, "validation": 2, "test": 2}, "near_duplicates": False, **keys}
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    return folder / "s.yaml"


class Listener:
    """A server that records what it receives.

    Args:
        talk: Answers one connection; reads with `Listener.take`.
        host: Address to listen on.
        port: Port, or 0 for any.
    """

    def __init__(self, talk: Talk, host: str = ELSEWHERE, port: int = 0) -> None:
        self._server = socket.create_server((host, port))
        self.host, self.port = host, int(self._server.getsockname()[1])
        self.received, self.connections = b"", 0
        self._talk, self._open = talk, True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def take(self, client: socket.socket) -> bytes:
        """Read what has arrived, and record it."""
        data = client.recv(1 << 16)
        self.received += data
        return data

    def close(self) -> None:
        """Stop listening."""
        self._open = False
        with socket.create_connection((self.host, self.port)):
            pass
        self._thread.join(10)
        self._server.close()

    def _serve(self) -> None:
        while self._open:
            client, _ = self._server.accept()
            if self._open:
                self.connections += 1
            client.settimeout(2.0)
            with client, contextlib.suppress(OSError, struct.error, IndexError):  # the client is gone
                self._talk(client, self)


def ask_for_cleartext(client: socket.socket, listener: Listener) -> None:
    """Talk as a PostgreSQL server that asks for the password in clear."""
    data = listener.take(client)
    while struct.unpack("!II", data[:8])[1] in (80877103, 80877104):  # asks for TLS or GSS encryption
        client.sendall(b"N")
        data = listener.take(client)
    client.sendall(b"R" + struct.pack("!II", 8, 3))  # AuthenticationCleartextPassword
    listener.take(client)
    fields = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0"
    client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)


def ask_for_account(client: socket.socket, listener: Listener) -> None:
    """Talk as an HTTP server that asks for an account."""
    listener.take(client)
    client.sendall(HTTP_ANSWER + REFUSAL)


def speak_http2(client: socket.socket, listener: Listener) -> None:
    """Begin to talk as a gRPC server, and read until the client gives up."""
    listener.take(client)
    client.sendall(SETTINGS)
    only_listen(client, listener)


def only_listen(client: socket.socket, listener: Listener) -> None:
    """Read until the client gives up."""
    while listener.take(client):
        pass


@pytest.fixture
def listening() -> Iterator[Callable[..., Listener]]:
    """`listening(talk, host=..., port=...)` starts a listener that ends with the test."""
    made: list[Listener] = []

    def listen(talk: Talk, host: str = ELSEWHERE, port: int = 0) -> Listener:
        made.append(Listener(talk, host, port))
        return made[-1]

    yield listen
    for one in made:
        one.close()
