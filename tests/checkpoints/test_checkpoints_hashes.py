"""The cache of hashes: only files that changed are read again."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evosearch.checkpoints import reader
from evosearch.checkpoints.cache import hashes
from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.digest import Line, tensor_line
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError

Counted = tuple[Callable[[], str], list[str]]


@pytest.fixture(autouse=True)
def _coarse_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the margin, because the files of a test are younger than it."""
    monkeypatch.setattr(hashes, "TICK_NS", -1)
    monkeypatch.setattr(hashes, "COARSE_NS", -1)


def counted_hash(path: Path) -> Counted:
    """Return a placeholder for hashing a file, and the list of its calls."""
    read: list[str] = []

    def compute() -> str:
        read.append(path.read_text())
        return f"sha of {path.read_text()}"

    return compute, read


def test_only_changed_files_are_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    compute, read = counted_hash(path)
    for _ in range(3):  # also in other processes
        assert Hashes(tmp_path / "cache").of([path], compute) == "sha of one"
    assert read == ["one"]
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and mtime as the file it replaces
    assert Hashes(tmp_path / "cache").of([path], compute) == "sha of two"
    (tmp_path / "new").write_text("six")
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").rename(path)
    assert Hashes(tmp_path / "cache").of([path], compute) == "sha of six"
    assert read == ["one", "two", "six"]


def test_a_link_has_the_cached_hash_of_its_target(tmp_path: Path) -> None:
    path, link = tmp_path / "weights", tmp_path / "link"
    path.write_text("one")
    link.symlink_to(path)
    compute, read = counted_hash(path)
    assert {Hashes(tmp_path).of([name], compute) for name in (path, link)} == {"sha of one"}
    assert read == ["one"]
    (marker,) = (tmp_path / "hashes").iterdir()
    assert list(json.loads(marker.read_text())["files"]) == [str(path.resolve())]


def test_files_written_during_or_just_before_hashing_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_text("one")

    def while_written() -> str:
        path.write_text("longer")
        return "of neither"

    assert Hashes(tmp_path).of([path], while_written) == "of neither"
    compute, read = counted_hash(path)
    assert Hashes(tmp_path).of([path], compute) == "sha of longer"
    path.write_text("again")
    monkeypatch.setattr(hashes, "TICK_NS", 10**12)  # as if within one tick of the clock
    monkeypatch.setattr(hashes, "COARSE_NS", 10**12)
    for _ in range(2):
        assert Hashes(tmp_path).of([path], compute) == "sha of again"
    assert read == ["longer", "again", "again"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "files": {}, "sha256": "no"}', '{"sha256": 3}'])
def test_a_damaged_marker_is_ignored(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    compute, read = counted_hash(path)
    Hashes(tmp_path).of([path], compute)
    (marker,) = (tmp_path / "hashes").iterdir()
    marker.write_text(text)
    assert Hashes(tmp_path).of([path], compute) == "sha of one"
    assert read == ["one", "one"]


def test_with_a_read_only_cache_files_are_hashed_each_time(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    compute, read = counted_hash(path)
    for _ in range(2):
        assert Hashes(path).of([path], compute) == "sha of one"
    assert read == ["one", "one"]


def test_a_checkpoint_is_hashed_once_for_each_config(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hashed = tiny("model"), list[str]()
    expected = Checkpoint.open(folder).content_sha256()

    def counting(name: str, tensor: torch.Tensor) -> Line:
        hashed.append(name)
        return tensor_line(name, tensor)

    monkeypatch.setattr(reader, "tensor_line", counting)
    for _ in range(2):
        assert Checkpoint.open(folder, hashes=Hashes(tmp_path)).content_sha256() == expected
    assert len(hashed) == len(set(hashed)) == len(Checkpoint.open(folder).tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))  # the config determines the tensors
    assert Checkpoint.open(folder, hashes=Hashes(tmp_path)).content_sha256() == expected
    assert len(hashed) == 2 * len(set(hashed))


def test_a_damaged_model_is_reported_each_time(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"'model\.norm\.weight' of .* is damaged: 1 of its 32 values are NaN"
        ):
            Checkpoint.open(folder, hashes=Hashes(tmp_path)).content_sha256()


@pytest.mark.parametrize("when", ["before it was read", "after"])
def test_a_file_removed_while_it_is_hashed_is_named(tmp_path: Path, when: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("one")

    def compute() -> str:
        if when == "after":
            path.read_text()
        path.unlink()
        return path.read_text() if when != "after" else "sha of one"

    with pytest.raises(CheckpointError) as caught:
        Hashes(tmp_path / "cache").of([path], compute)
    assert str(caught.value).startswith(f"{path}: cannot be read: No such file or directory")
    assert "If the model was removed or replaced in the meantime" in str(caught.value)
