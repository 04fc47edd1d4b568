"""Origins: equal for spellings of one server, never for spellings of two."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.errors import InputError
from evosearch.origins import Secret, canonical_host, may_receive, origin_of

SAME = {
    "http://mlflow:80": ["http://mlflow", "HTTP://MLflow.:80/path?x#y", "http://me@mlflow", "http://me:x@MLFLOW:080/"],
    "https://[::1]:443": ["https://[::1]", "https://[0:0:0:0:0:0:0:1]", "https://[0000::0001]:443/"],
    "http://[2001:db8::a]:5000": ["http://[2001:DB8:0::A]:5000", "http://[2001:db8:0:0:0:0:0:a]:5000"],
    "http://127.0.0.1:5000": ["http://127.0.0.1:5000/"],
    "http://xn--bcher-kva.example:80": [
        "http://bücher.example",
        "http://BÜCHER.example.",
        "http://XN--bcher-kva.example",
    ],
    "postgresql://db:5432": ["postgresql://db", "postgresql+psycopg://me:x@DB./evosearch?sslmode=require"],
}
NONE = [
    "",
    "mlflow",
    "http://",
    "http://:80",
    "http://127.1",
    "http://0177.0.0.1",
    "http://0x7f000001",
    "http://2130706433",
    "http://127.0.0.01",
    "http://127.0.0.1.",
    "http://[::1%25lo]",
    "http://[::1",
    "http://a@b@c",
    "http://a\\@b",
    "http://a b",
    "http://a\nb",
    "http://a%2eb",
    "http://a..b",
    "http://-a",
    "http://a,b",
    "http://a:0",
    "http://a:65536",
    "http://a:x",
    "http:///a",
    "unknown://a",
    "http://faß.example",  # fass.example before IDNA 2008
    "http://１２７.0.0.1",
]


@pytest.mark.parametrize("canonical", SAME)
def test_one_server_has_one_origin(canonical: str) -> None:
    for address in (canonical, *SAME[canonical]):
        assert str(origin_of(address)) == canonical


@pytest.mark.parametrize("address", NONE)
def test_what_programs_read_differently_has_no_origin(address: str) -> None:
    assert origin_of(address) is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "{:#x}", "0{:o}", "{:#X}"]), st.integers(0, 3))
def test_a_number_that_resolves_is_no_host(number: int, form: str, dots: int) -> None:
    """Every form of an IPv4 address that the C library accepts, besides the usual one, has no canonical host."""
    parts = [number >> (8 * (3 - index)) & 255 for index in range(dots)]
    parts.append(number & ((1 << (8 * (4 - dots))) - 1))
    host = ".".join(form.format(part) for part in parts)
    try:
        reached = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return
    assert canonical_host(host) in (None, reached)


@given(st.text(max_size=40))
def test_a_canonical_host_is_its_own(text: str) -> None:
    host = canonical_host(text)
    assert host is None or canonical_host(host) == host


def test_only_the_users_variables_name_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    place = origin_of("http://mlflow:5000")
    for name in ("MLFLOW_TRACKING_URI", "EVOSEARCH_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    assert not may_receive(Secret.MLFLOW, place)
    assert not may_receive(Secret.MLFLOW, None)
    for others in ("https://mlflow:5000", "http://mlflow", "http://mlflow.example:5000", "sqlite:///mlflow.db", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", others)
        assert not may_receive(Secret.MLFLOW, place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:x@MLFLOW:5000/path")
    assert may_receive(Secret.MLFLOW, place)
    assert not may_receive(Secret.RAY, place), "it is named for another secret"
    monkeypatch.setenv("EVOSEARCH_HOSTS", "http://mlflow:5000,\npostgresql://db  ray://head:6379")
    assert may_receive(Secret.RAY, place)
    assert may_receive(Secret.RAY, origin_of("HEAD:6379", "ray"))
    assert may_receive(Secret.POSTGRES, origin_of("postgresql://db:5432"))
    monkeypatch.setenv("EVOSEARCH_HOSTS", "http://mlflow:5000 127.1")
    with pytest.raises(InputError, match=r"EVOSEARCH_HOSTS: got '127\.1'"):
        may_receive(Secret.RAY, place)
