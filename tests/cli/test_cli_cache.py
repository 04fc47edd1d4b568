"""`evosearch cache` lists what a cache contains and prunes it; wrong sizes are refused before anything is removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.checkpoints.cache.uses import hold

Evosearch = Callable[..., tuple[int, str, str]]
MIB = 2**20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two copies, the older of 2 MiB, and the draft of a killed process."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EVOSEARCH_CACHE", str(folder))
    monkeypatch.delenv("EVOSEARCH_CACHE_MAX", raising=False)
    for name, size, used in (("old", 2 * MIB, 1e9), ("new", MIB, 1.5e9)):
        (folder / "copies" / name).mkdir(parents=True)
        (folder / "copies" / name / "model.safetensors").write_bytes(os.urandom(size))
        os.utime(folder / "copies" / name, (used, used))
    (folder / "copies" / ".third.x.partial").mkdir()
    return folder


def test_the_cache_is_listed_and_nothing_is_removed(cache: Path, evosearch: Evosearch) -> None:
    code, out, _ = evosearch("cache")
    assert code == 0
    lines = out.splitlines()
    assert str(cache) in out.replace("\n", "")
    (new,) = (line for line in lines if line.startswith("new"))
    assert "copy from a network file system" in new
    assert "1.0 MiB" in new
    assert "2017-07-1" in new
    assert lines[-2] == "2 entries, 3.0 MiB"
    assert lines[-1].startswith("1 drafts of killed processes")
    assert (cache / "copies" / ".third.x.partial").is_dir()
    code, out, _ = evosearch("cache", "--json")
    found = json.loads(out)
    assert (code, found["drafts"], found["cache"]) == (0, 1, str(cache))
    assert [(one["kind"], one["name"], one["in_use"]) for one in found["entries"]] == [
        ("copies", "new", False),
        ("copies", "old", False),
    ]
    assert found["bytes"] == sum(one["bytes"] for one in found["entries"]) >= 3 * MIB


def test_pruning_without_a_size_removes_drafts_only(cache: Path, evosearch: Evosearch) -> None:
    code, out, _ = evosearch("cache", "--prune")
    assert code == 0
    assert "0 entries and 1 drafts removed" in out
    assert "No entries were considered: give --max-size, or set EVOSEARCH_CACHE_MAX." in out
    assert sorted(path.name for path in (cache / "copies").iterdir()) == ["new", "old"]


@pytest.mark.parametrize("by", ["option", "variable"])
def test_pruning_to_a_size(cache: Path, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "variable":
        monkeypatch.setenv("EVOSEARCH_CACHE_MAX", "2MB")
    code, out, _ = evosearch("cache", "--prune", *(("--max-size", "2MB") if by == "option" else ()))
    assert code == 0
    assert "removed copies/old" in out
    assert [path.name for path in (cache / "copies").iterdir()] == ["new"]
    hold(cache, "copies", "new", "org/a [b]")
    code, out, _ = evosearch("cache", "--prune", "--max-size", "0")
    assert "More than 0 bytes is left, because running processes use it." in out
    assert [path.name for path in (cache / "copies").iterdir()] == ["new"]
    code, out, _ = evosearch("cache")
    assert "org/a [b]" in out
    assert "in use" in out
    code, out, _ = evosearch("cache", "--prune", "--max-size", "0", "--json")
    assert json.loads(out)["removed"] == []
    assert [one["what"] for one in json.loads(out)["left"]["entries"]] == ["org/a [b]"]


def test_wrong_sizes_are_refused(cache: Path, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, error in (
        (("--prune", "--max-size", "lots"), "--max-size: got 'lots'. A size: 200GB, 1.5TB, 800GiB, 0"),
        (("--max-size", "1GB"), "--max-size: given without --prune. Add --prune, which removes entries"),
    ):
        code, _, err = evosearch("cache", *arguments)
        assert code == 2
        assert error in " ".join(err.split())
    monkeypatch.setenv("EVOSEARCH_CACHE_MAX", "lots")
    code, _, err = evosearch("cache", "--prune")
    assert code == 2
    assert "EVOSEARCH_CACHE_MAX: got 'lots'" in " ".join(err.split())
    assert len(list((cache / "copies").iterdir())) == 3
