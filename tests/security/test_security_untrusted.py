"""Files from elsewhere are read only if they are regular, inside their root, and within limits."""

import os
import time
from pathlib import Path

import pytest

from evosearch import untrusted
from evosearch.errors import CandidateError, CheckpointError, SuiteError

LIMIT = 1000


def read(path: Path, root: Path | None = None) -> bytes:
    return untrusted.read_bytes(path, CheckpointError, LIMIT, root)


def parse(text: str) -> object:
    return untrusted.parse_json(text.encode(), "x.json", CheckpointError)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * LIMIT)
    assert read(path) == b"x" * LIMIT
    path.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(CheckpointError, match=r"a: larger than 1000 bytes"):
        read(path)


def test_files_without_a_size_are_bounded() -> None:
    with pytest.raises(SuiteError, match="larger than 10 bytes"):
        untrusted.read_bytes(Path("/proc/self/maps"), SuiteError, 10)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop"])
def test_special_files_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "special"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)  # opening one waits for a writer
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("special")  # a loop
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"special: (not a regular file|.*[Ss]ymlink|Too many levels)"):
        read(path)
    assert time.monotonic() - began < 5
    assert untrusted.present(path)


@pytest.mark.parametrize("name", ["missing", "x" * 5000, "a\0b"])
def test_paths_that_name_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Check the path"):
        read(tmp_path / name)
    assert not untrusted.present(tmp_path / name)


def test_links_stay_inside_their_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOPSECRET")
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "own").write_text("own")
    (root / "alias").symlink_to("own")
    (root / "leads").symlink_to("../secret")
    (root / "folder").symlink_to("..")
    (tmp_path / "model2").symlink_to(root)
    assert read(root / "alias", root) == b"own"
    assert read(tmp_path / "model2" / "alias", tmp_path / "model2") == b"own"  # the root itself may be a link
    for name in ("leads", "folder/secret", "sub/../../secret"):
        with pytest.raises(CheckpointError, match=r"leads to .*secret, outside of .*model.*Copy the file"):
            read(root / name, root)
    assert read(root / "leads") == b"TOPSECRET"  # without a root, a link of the user's own is followed


def test_the_hubs_cache_keeps_its_files_in_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--m" / "snapshots" / "c0ffee", tmp_path / "models--o--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "etag").write_text("config")
    (tmp_path / "secret").write_text("TOPSECRET")
    (snapshot / "config.json").symlink_to("../../blobs/etag")
    (snapshot / "leads").symlink_to("../../../secret")
    assert read(snapshot / "config.json", snapshot) == b"config"
    with pytest.raises(CheckpointError, match="outside of"):
        read(snapshot / "leads", snapshot)
    (blobs / "etag").unlink()
    blobs.rmdir()
    blobs.symlink_to(tmp_path)  # blobs that lead elsewhere are no blobs
    (snapshot / "other").symlink_to("../../blobs/secret")
    with pytest.raises(CheckpointError, match="outside of"):
        read(snapshot / "other", snapshot)


def test_text_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a\r\nb\n\xff")
    with pytest.raises(CheckpointError, match=r"not UTF-8 text \(line 3\)"):
        untrusted.read_text(path, CheckpointError, LIMIT)
    path.write_bytes(b"a\r\nb\rc")
    assert untrusted.read_text(path, CheckpointError, LIMIT) == "a\nb\nc"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON: Expecting property name"),
        ('{"a": 9223372036854775808}', "9223372036854775808 is too large. Whole numbers below 2\\^63"),
        ('{"a": -' + "9" * 400 + "}", r"too large"),
        ('{"a": ' + "9" * 5000 + "}", r"\(5000 characters\) is too large"),
        ('{"a": 1e309}', "a: the number 1e309 is too large"),
        ('{"a": [0, NaN]}', r"a\[1\]: got NaN, which is not JSON"),
        ('{"a": -Infinity}', "got -Infinity"),
        ("[" * 70 + "]" * 70, "nested more than 64 levels"),
        ("[" * 100_000, "invalid JSON: nested too deeply"),
        ('{"a":' * 100_000, "invalid JSON: nested too deeply"),
        ("\ufeff{}", "invalid JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.json: .*{message}"):
        parse(text)


def test_json_within_the_limits_is_read() -> None:
    assert parse('{"a": 9223372036854775807, "b": -9223372036854775807, "c": [1e308, "9999999999999999999999"]}') == {
        "a": 2**63 - 1,
        "b": 1 - 2**63,
        "c": [1e308, "9" * 22],
    }
    assert parse("[" * 64 + "]" * 64) is not None
    large = 10**30
    assert untrusted.parse_json(b"[1" + b"0" * 30 + b"]", "x", CheckpointError, large=(large,)) == [large]


class Panic(BaseException):
    """Like the panics of native libraries, which are no Exception."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "MemoryError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (AttributeError("'NoneType' object has no attribute 'x'"), "'NoneType' object has no attribute 'x'"),
        (KeyError("x"), "KeyError: 'x'"),
        (Panic("called `unwrap()` on a `None` value"), "called `unwrap"),
        (ValueError("one\ntwo\nthree"), "one two."),
        (ValueError("y" * 5000), "yyy..."),
    ],
)
def test_whatever_goes_wrong_is_one_input_error(raised: BaseException, said: str) -> None:
    with pytest.raises(CheckpointError) as caught, untrusted.boundary("m/config.json: a", CheckpointError, "unusable"):
        raise raised
    assert str(caught.value).startswith("m/config.json: a: unusable: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, CandidateError("score", "x"), SuiteError("a", "b")])
def test_interrupts_and_our_own_errors_pass(raised: BaseException) -> None:
    expected = raised if isinstance(raised, type) else type(raised)
    with pytest.raises(expected), untrusted.boundary("x", CheckpointError, "unusable"):
        raise raised
