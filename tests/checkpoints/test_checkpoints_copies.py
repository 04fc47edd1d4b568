"""Copies of models from network file systems: atomic, and renewed when the model changes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.checkpoints.cache import copies
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError

Tiny = Callable[..., Path]


def test_a_copy_includes_weights_config_and_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    far = tiny("model", max_shard_size="20KB")
    (far / "tokenizer.json").write_text("{}")
    (far / "additional_chat_templates").mkdir()
    (far / "additional_chat_templates" / "tool.jinja").write_text("x")
    (far / "optimizer.pt").write_text("training leaves such")
    linked, blobs = tmp_path / "models--o--m" / "snapshots" / "c0ffee", tmp_path / "models--o--m" / "blobs"
    for file in [file for file in far.rglob("*") if file.is_file()]:  # as in the hub's cache
        link, blob = linked / file.relative_to(far), blobs / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        blobs.mkdir(exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    model, done = Checkpoint.open(linked), list[float]()
    folder = copies.folder_of(model, tmp_path / "cache")
    needed = copies.missing_bytes(model, folder)
    copies.copy(model, folder, done.append)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not any(file.is_symlink() for file in folder.rglob("*"))
    assert needed == sum(file.stat().st_size for file in files) > 0
    assert {str(file.relative_to(folder)) for file in files} == {
        *(file.name for file in far.glob("*.safetensors")),
        *("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"),
        "additional_chat_templates/tool.jinja",
    }
    assert Checkpoint.open(folder).content_sha256() == model.content_sha256()
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert copies.missing_bytes(model, folder) == 0


def test_a_changed_model_is_copied_to_another_folder(tiny: Tiny, tmp_path: Path) -> None:
    model = Checkpoint.open(tiny("model"))
    folder = copies.folder_of(model, tmp_path)
    assert folder == copies.folder_of(Checkpoint.open(model.folder), tmp_path)
    changed = Checkpoint.open(tiny("model", seed=1))
    assert changed.folder == model.folder
    assert copies.folder_of(changed, tmp_path) != folder


def test_an_interrupted_copy_leaves_no_files(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, copyfile = Checkpoint.open(tiny("model", max_shard_size="20KB")), shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if source.name.startswith("model-00002"):
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    monkeypatch.setattr(copies.shutil, "copyfile", full)
    folder = copies.folder_of(model, tmp_path / "cache")
    with pytest.raises(CheckpointError, match=rf"{folder}: '.*model' cannot be copied here: No space left on device"):
        copies.copy(model, folder)
    assert list((tmp_path / "cache" / "copies").iterdir()) == []
