"""Files of evosearch can be read by their owner only, unless $EVOSEARCH_UMASK allows more."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import evosearch as package
from evosearch.errors import InputError
from evosearch.private_folder import LOCK, NEW_S, PrivateFolder, sweep
from evosearch.umask import VARIABLE, follow_umask, private_files, umask_wanted

Program = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
PREFIX = "evosearch-test-"


@pytest.fixture(autouse=True)
def _ordinary_umask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may read what is written, as on most machines; a test that changes the umask fails."""
    monkeypatch.delenv(VARIABLE, raising=False)


def modes(folder: Path) -> dict[str, int]:
    """Return the mode of a folder and of everything in it."""
    found = [folder, *folder.rglob("*")]
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found if not path.is_symlink()
    }


def others(folder: Path) -> dict[str, str]:
    """Return what group or others may use in a folder."""
    return {name: f"{mode:o}" for name, mode in modes(folder).items() if mode & 0o077}


def test_everything_that_the_program_writes_is_private(
    world: World, evosearch: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOSEARCH_DATA", str(tmp_path / "data"))
    spec = world(budget={"candidates": 2}, baselines={"scales": []}, tracking={})
    assert evosearch("run", spec)[0] in (0, 3)  # promoted or not
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    written = modes(runs)
    assert {"world/ledger.db", "mlflow.db"} <= written.keys()
    assert others(runs) == {}
    assert others(cache) == {}
    assert others(tmp_path / "data") == {}
    for fmt, *more in (("checkpoint",), ("recipe",), ("adapter", "--save-modules")):
        out = tmp_path / "exports" / fmt
        code, _, err = evosearch("export", "world", "--candidate", "uniform", "--format", fmt, *more, "-o", out)
        assert code == 0, err
    assert {
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "adapter/adapter_model.safetensors",
        "recipe",
    } <= (modes(tmp_path / "exports").keys())
    assert others(tmp_path / "exports") == {}


def test_a_group_can_share_what_is_written(
    world: World, evosearch: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "027")
    recipe = {"merge_method": "linear", "models": [{"model": "./base", "parameters": {"weight": 1.0}}]}
    path = world().with_name("recipe.yaml")
    path.write_text(yaml.safe_dump(recipe))
    assert evosearch("merge", path, tmp_path / "out")[0] == 0
    assert set(modes(tmp_path / "out").values()) == {0o750, 0o640}


@pytest.mark.parametrize("text", ["77777", "-1", "0o100", "rw", "8"])
def test_a_wrong_umask_is_refused(
    world: World, evosearch: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    code, _, err = evosearch("run", world())
    assert code == 2
    assert f"EVOSEARCH_UMASK: got '{text}'. An octal number from 000 to 077" in err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match="EVOSEARCH_UMASK"):
        umask_wanted()


def test_functions_put_the_umask_back(world: World, tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "./base", "parameters": {"weight": 1.0}}]}
    path = world().with_name("recipe.yaml")
    path.write_text(yaml.safe_dump(recipe))
    before = os.umask(0o022)
    try:
        package.merge(path, tmp_path / "out")
        with pytest.raises(InputError):
            package.merge(path, tmp_path / "out")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert others(tmp_path / "out") == {}


def test_the_mode_of_a_library_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    before = os.umask(0o022)
    try:
        for name, mode in (("file", 0o644), ("folder", 0o755)):
            follow_umask(tmp_path / name)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
        with private_files():
            follow_umask(tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        threads: list[int] = []
        with private_files():  # the umask is read without setting it, which another thread would notice
            thread = threading.Thread(target=lambda: threads.append(os.umask(0o077)))
            follow_umask(tmp_path / "file")
            thread.start()
            thread.join()
        assert threads == [0o077]
    finally:
        os.umask(before)


HOLD = """
import sys, time
from pathlib import Path
from evosearch.private_folder import PrivateFolder
folder = PrivateFolder.make(sys.argv[1], Path(sys.argv[2]))
(folder.path / "secret").write_text("x")
print(folder.path, flush=True)
time.sleep(600)
"""


def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, PREFIX, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [Path(process.stdout.readline().strip()) for process in started if process.stdout]
    (tmp_path / f"{PREFIX}notours").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}new").mkdir()
    (tmp_path / f"{PREFIX}old").mkdir()
    os.utime(tmp_path / f"{PREFIX}old", (0, os.stat(tmp_path).st_mtime - NEW_S - 1))
    try:
        started[0].send_signal(signal.SIGKILL)
        started[0].wait()
        with PrivateFolder.make(PREFIX, tmp_path) as made:
            assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {folders[1].name, made.path.name, f"{PREFIX}notours", f"{PREFIX}new", "elsewhere"}
            sweep(PREFIX, tmp_path)
            assert made.path.exists(), "its own process is alive"
        assert not made.path.exists()
        assert (folders[1] / "secret").exists(), "a living process keeps its folder"
        assert (folders[1] / LOCK).exists()
    finally:
        for process in started:
            process.kill()
            process.communicate()
