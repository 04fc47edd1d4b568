"""Ray's token goes only to clusters that the user named; an attacker's server listens at an address of a spec."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import ClusterError, SpecError
from evosearch.execution import ray_cluster
from evosearch.execution.ray_client import Dashboard

from .conftest import ELSEWHERE, Listener, ask_for_account, only_listen, speak_http2

Listening = Callable[..., Listener]
Program = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
TOKEN = "5ec4e7" * 10
NAMED = "127.0.0.1"
ADDRESSES = [
    "127.0.0.2:{p}",
    "127.0.0.2.:{p}",
    "127.2:{p}",
    "127.0.2:{p}",
    "127.00.00.2:{p}",
    "0177.0.0.2:{p}",
    "0x7f.0.0.2:{p}",
    "0x7f000002:{p}",
    "0X7F000002:{p}",
    "2130706434:{p}",
    "017700000002:{p}",
    "[::ffff:127.0.0.2]:{p}",
    "[::FFFF:7f00:2]:{p}",
    "::ffff:127.0.0.2:{p}",
    "[0:0:0:0:0:ffff:7f00:2]:{p}",
    "[::ffff:127.0.0.2%lo]:{p}",
    "127.0.0.1@127.0.0.2:{p}",
    "127.0.0.1:{p}@127.0.0.2:{p}",
    "127.0.0.1:{p},127.0.0.2:{p}",
    "127.0.0.2:{p},127.0.0.1:{p}",
    "ipv4:127.0.0.2:{p}",
    "ipv4:127.0.0.1:{p},127.0.0.2:{p}",
    "IPV4:127.0.0.2:{p}",
    "ipv6:[::ffff:127.0.0.2]:{p}",
    "dns:127.0.0.2:{p}",
    "dns:///127.0.0.2:{p}",
    "dns://127.0.0.1/127.0.0.2:{p}",
    "passthrough:///127.0.0.2:{p}",
    "unix:/tmp/127.0.0.2:{p}",
    "ray://127.0.0.2:{p}",
    "http://127.0.0.2:{p}",
    "anyscale://127.0.0.2:{p}",
    "127.0.0.1#@127.0.0.2:{p}",
    "127.0.0.2#127.0.0.1:{p}",
    "127.0.0.1\\127.0.0.2:{p}",
    "127.0.0.1 127.0.0.2:{p}",
    "127.0.0.1\n127.0.0.2:{p}",
    " 127.0.0.2:{p}",
    "127.0.0.2%00127.0.0.1:{p}",
    "127.0.0.1%40127.0.0.2:{p}",
    "127.0.0.1.127.0.0.2:{p}",
    "127。0。0。2:{p}",
    "１２７.0.0.2:{p}",
    "127.0.0.2\u200b:{p}",
    "127.0.0.2:0{p}",
    "localhost:{p}",
]


@pytest.fixture
def attacker(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """An attacker's server, at the port of the user's cluster on another address."""
    found = listening(only_listen)
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", *TELEMETRY_OFF):
        monkeypatch.setenv(name, "1")  # for monkeypatch to restore them
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", f"{NAMED}:{found.port}")
    return found


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_no_spelling_of_an_address_is_joined(
    ray_knows_its_mode: None,
    attacker: Listener,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    address: str,
    mode: str,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(SpecError) as caught:
        ray_cluster.connect(tmp_path / "token", address.format(p=attacker.port), None)
    assert attacker.connections == 0
    assert "not joined" in caught.value.what or "not the address of a Ray cluster" in caught.value.what
    assert TOKEN not in str(caught.value)


def test_a_cluster_that_is_found_must_be_named_too(
    ray_knows_its_mode: None, attacker: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For `auto`, Ray reads the arguments of all processes, also of other users."""
    monkeypatch.delenv("RAY_ADDRESS")
    from ray._private import services

    place = f"{ELSEWHERE}:{attacker.port}"
    program = [sys.executable, "-c", "import time; time.sleep(600)", f"--gcs-address={place}"]
    with subprocess.Popen(["raylet", *program[1:]], executable=sys.executable) as bait:
        try:
            services.find_gcs_addresses.cache_clear()
            assert place in services.find_gcs_addresses()
            with pytest.raises(SpecError, match=f"auto: the cluster at {place} is not joined"):
                ray_cluster.connect(tmp_path / "token", "auto", None)
        finally:
            bait.kill()
            services.find_gcs_addresses.cache_clear()
    assert attacker.connections == 0


def test_a_named_cluster_gets_the_token(listening: Listening, tmp_path: Path) -> None:
    """The listener would see it. In a process of its own, whose Ray still waits at its end."""
    found = listening(speak_http2)
    code = (
        "import sys, os; from pathlib import Path; from evosearch.execution import ray_cluster as c; c.REACH_S = 20.0\n"
        "try: c.connect(Path('token'), sys.argv[1], None)\n"
        "except c.SpecError as exc: print(exc, flush=True)\n"
        "os._exit(0)"
    )
    place = f"{ELSEWHERE}:{found.port}"
    environment = os.environ | {"RAY_AUTH_TOKEN": TOKEN, "EVOSEARCH_HOSTS": f"ray://{place}", "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", code, place], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "not a Ray cluster" in done.stdout, done.stderr
    assert TOKEN.encode() in found.received


@pytest.mark.parametrize("command", ["check", "run", "leaderboard", "export", "ui", "stop", "score", "merge"])
def test_no_command_joins_a_cluster_of_a_file(
    attacker: Listener, world: World, evosearch: Program, tmp_path: Path, command: str
) -> None:
    spec = world(workers={"address": f"{ELSEWHERE}:{attacker.port}", "count": 1, "threads": 1, "device": "cpu"})
    more = {"export": ("--candidate", "0", "--format", "recipe", "-o", tmp_path / "out"), "merge": (tmp_path / "out",)}
    suite = (spec.parent / "suite.yaml",) if command == "score" else ()
    code, out, err = evosearch(command, spec, *suite, *more.get(command, ()))
    assert code == 2
    assert attacker.connections == 0
    if command not in ("check", "run"):  # the others join no cluster
        return
    assert f"EVOSEARCH_HOSTS=ray://{ELSEWHERE}:{attacker.port} (or $RAY_ADDRESS)" in " ".join((out + err).split())


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_of_a_dashboard_is_not_followed(
    attacker: Listener, listening: Listening, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    def redirect(client: socket.socket, listener: Listener) -> None:
        listener.take(client)
        place = f"http://{ELSEWHERE}:{attacker.port}/"
        client.sendall(f"HTTP/1.1 {code} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login anyone password hunter2\n")
    (tmp_path / "netrc").chmod(0o600)
    named = listening(redirect, host=NAMED)
    with pytest.raises(ClusterError):
        Dashboard(f"http://{NAMED}:{named.port}").client.list_jobs()
    assert named.connections > 0
    assert attacker.connections == 0


def test_submit_and_status_send_it_to_their_address_only(
    attacker: Listener, listening: Listening, world: World, evosearch: Program
) -> None:
    named = listening(ask_for_account, host=NAMED)
    spec = world(
        ledger=f"postgresql://me@{ELSEWHERE}:{attacker.port}/db",
        tracking={"uri": f"http://{ELSEWHERE}:{attacker.port}"},
        workers={"address": f"{ELSEWHERE}:{attacker.port}"},
    )
    for command in (("submit", spec), ("status",)):
        code, _, _ = evosearch(*command, "--address", f"http://{NAMED}:{named.port}")
        assert code == 2
    assert TOKEN.encode() in named.received
    assert attacker.connections == 0
