"""The temporary folder of a check is removed, or swept by the next check if its process was killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evosearch.checkpoints.references import default_cache
from evosearch.errors import CheckpointError
from evosearch.preflight.placeholders import temporary_folder

KILLED = """
import os, signal
from evosearch.preflight.placeholders import temporary_folder
with temporary_folder() as folder:
    (folder / "stage").mkdir()
    (folder / "stage" / "model.safetensors").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOSEARCH_CACHE", str(tmp_path / "cache"))


def test_stale_folders_are_removed_and_those_in_use_are_not() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = default_cache().glob(".check.*")
    assert (left / "stage" / "model.safetensors").is_file()
    other = default_cache() / "merged"
    other.mkdir()
    with temporary_folder() as first:
        assert not left.exists()
        (first / "stage").mkdir()
        with temporary_folder() as second:
            assert first != second
            assert (first / "stage").is_dir()
        assert not second.exists()
    assert list(default_cache().iterdir()) == [other]


def test_it_is_removed_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), temporary_folder():
        _ = 1 / 0
    assert list(default_cache().iterdir()) == []


def test_a_cache_that_is_a_file_is_named() -> None:
    default_cache().write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written.*Choose another folder in EVOSEARCH_CACHE"):
        temporary_folder().__enter__()
