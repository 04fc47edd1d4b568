"""A disk that fills up during a write: an error with path and sizes, no partial files, and no loss of data.

The full disk is simulated with a limit on the file size, which any process can set: writes fail at the same point. The
test of too little space at the start uses the file system's real free space.
"""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from evosearch.checkpoints.writer import CheckpointWriter
from evosearch.errors import CheckpointError
from evosearch.search.ledger.ledger import Ledger

Evosearch = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
LIMIT = 40_000  # maximum file size in bytes; the models here have 98 kB of weights
SIZES = r"\d+\.\d [KM]iB needed, [\d.]+ [KMGT]iB free"


def on_a_full_disk(*arguments: object, most: int = LIMIT) -> tuple[int, str]:
    """Run a command that can write files of at most `most` bytes; return its exit code and standard error."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, "-m", "evosearch.cli.main", *map(str, arguments)]
    done = subprocess.run(  # standard streams are pipes, which the limit does not affect
        command,
        env=dict(os.environ),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_merge_leaves_no_files(models_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    models = [{"model": str(models_folder / f"expert{i}"), "parameters": {"weight": 0.5}} for i in (1, 2)]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "neighbour").write_text("mine")
    before = contents(tmp_path)
    code, err = on_a_full_disk("merge", recipe, tmp_path / "out" / "merged")
    assert code == 2, err
    assert re.search(rf"out/merged: cannot be written: File too large \({SIZES}\)\. Raise the limit", err), err
    assert "Traceback" not in err
    assert contents(tmp_path) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["neighbour"]


def test_a_failed_export_leaves_the_earlier_export_unchanged(
    planted: World, evosearch: Evosearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = planted("night", budget={"candidates": 2}, baselines={"scales": []})
    assert evosearch("run", spec)[0] == 0
    out = tmp_path / "exports" / "winner"
    code, _, err = evosearch("export", "night", "--format", "checkpoint", "-o", out)
    assert code == 0, err
    before = contents(out.parent)
    assert "winner/model.safetensors" in before
    arguments = ("export", "night", "--format", "checkpoint", "--candidate", "base", "--overwrite", "-o", out)
    code, err = on_a_full_disk(*arguments)
    assert code == 2, err
    assert re.search(rf"exports/winner: cannot be written: File too large \({SIZES}\)", err), err
    assert contents(out.parent) == before, "the earlier export is unchanged, and no file was added"
    assert evosearch(*arguments)[0] == 0, "with enough space the same command succeeds"
    assert contents(out.parent)["winner/model.safetensors"] != before["winner/model.safetensors"]


@pytest.mark.slow
def test_a_search_on_a_full_disk_fails_without_blaming_its_input(planted: World, evosearch: Evosearch) -> None:
    spec = planted("night", budget={"candidates": 2}, baselines={"scales": []})
    code, err = on_a_full_disk("run", spec, most=120_000)  # less than the ledger's write-ahead log needs
    assert code == 1, err
    assert "Free disk space, then run the same command to resume; everything recorded is safe" in err
    assert "Traceback" not in err
    assert evosearch("run", spec)[0] == 0


@pytest.mark.slow
def test_a_full_disk_of_mlflow_is_one_line(planted: World) -> None:
    """The library logs a traceback for each failure, unless its logging is silenced."""
    spec = planted("night", tracking={}, budget={"candidates": 2}, baselines={"scales": []})
    _, err = on_a_full_disk("run", spec, most=500_000)  # less than MLflow's tables, which fail before the ledger may
    assert "The search continues; missing events are written once the store is back" in err
    assert "Traceback" not in err


def test_too_little_space_is_detected_before_anything_is_written(tmp_path: Path) -> None:
    layout = [("a", (2**30, 2**20)), ("b", (2**30,))]  # 4 PiB and 4 GiB
    with pytest.raises(CheckpointError) as caught:
        CheckpointWriter(tmp_path / "new" / "out", layout, torch.float32)
    assert caught.value.where == str(tmp_path / "new" / "out")
    assert re.fullmatch(r"cannot be written: 4096\.0 TiB needed, [\d.]+ [KMGT]iB free", caught.value.what)
    assert caught.value.next == "Free some space, or choose a folder on another disk"
    assert list((tmp_path / "new").iterdir()) == []


def test_the_needed_space_includes_copied_files(models_folder: Path, tmp_path: Path) -> None:
    """Tokenizer files can take megabytes."""
    plain = CheckpointWriter(tmp_path / "plain", [("a", (4,))], torch.float32)
    complete = CheckpointWriter(tmp_path / "complete", [("a", (4,))], torch.float32, models_folder / "base")
    for writer in (plain, complete):
        with pytest.raises(RuntimeError), writer:
            raise RuntimeError
    copied = sum((models_folder / "base" / name).stat().st_size for name in ("tokenizer.json", "tokenizer_config.json"))
    assert complete._needed - plain._needed >= copied > 0


FILL_THE_LEDGER = """
import resource, sys
from evosearch.errors import LedgerError
from evosearch.search.ledger.ledger import Ledger
with Ledger.open(sys.argv[1], "night.yaml: ledger") as ledger:
    ledger.append("one", [("started", {"name": "night"})])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    recorded = 1
    try:
        while recorded < 1000:
            ledger.append("one", [("asked", {"filler": "x" * 3000})] * 2)
            recorded += 2
    except LedgerError as exc:
        print(exc)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [event.seq for event in ledger.events("one")] == list(range(1, recorded + 1))
    ledger.append("one", [("stopped", {"reason": "candidates"})])
    print(recorded, [event.seq for event in ledger.events("one")][-1])
"""


def test_a_ledger_on_a_full_disk_keeps_committed_events_and_continues_with_space(tmp_path: Path) -> None:
    database = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_LEDGER, f"sqlite:///{database}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    error, counts = done.stdout.splitlines()
    assert error.startswith(f"night.yaml: ledger: {database} cannot be used: disk I/O error. Free disk space")
    recorded, last = map(int, counts.split())
    assert 1 < recorded < 1000
    assert last == recorded + 1


def test_a_backup_on_a_full_disk_is_one_error_and_leaves_no_file(tmp_path: Path) -> None:
    database, out = tmp_path / "ledger.db", tmp_path / "copies" / "backup.db"
    with Ledger.open(f"sqlite:///{database}") as ledger:
        ledger.append("one", [("started", {"name": "night"}), ("asked", {"filler": "x" * 400_000})])
    code, err = on_a_full_disk("ledger", "backup", database, "-o", out, most=100_000)
    assert code == 1, err
    assert re.search(
        r"copies/backup\.db: cannot be written: (disk I/O error|database or disk is full)\. Free disk", err
    ), err
    assert "Traceback" not in err
    assert list(out.parent.iterdir()) == []
