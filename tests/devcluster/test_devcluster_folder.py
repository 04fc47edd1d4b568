"""The folder of a cluster: other files in it are kept, and folders without a cluster are rejected."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evosearch.devcluster import cluster as clusters
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres, find_programs
from evosearch.devcluster.private import write_private
from evosearch.errors import InputError


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "evosearch.cli.main", "cluster", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with other files, some of them under names that a cluster also uses."""
    folder = tmp_path / "work"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "thesis.txt").write_text("years")
    (folder / "notes").write_text("more")
    folder.chmod(0o755)
    return folder


def all_there(folder: Path) -> bool:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")} == {"runs", "runs/thesis.txt", "notes"}


def test_down_removes_nothing_without_a_cluster(foreign: Path) -> None:
    refused = command("down", "--remove", "--folder", foreign)
    assert refused.returncode == 2
    assert f"{foreign}: there is no cluster in this folder. Start one: evosearch cluster up" in refused.stderr
    assert all_there(foreign)


def test_up_rejects_a_folder_with_other_files(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "find_programs", lambda: Path("/"))
    wrong = r"this folder is not empty and contains no cluster: notes, runs\. A new or empty folder"
    with pytest.raises(InputError, match=wrong):
        Cluster(foreign).up()
    assert all_there(foreign)
    assert foreign.stat().st_mode & 0o777 == 0o755


OTHER = '{"processes": {"mlflow": {"pid": 7, "started": 1.5}}}'


@pytest.mark.parametrize("content", ['{"terraform": 4}', "[]", "", OTHER])
def test_another_programs_state_file_is_rejected(foreign: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (foreign / "state.json").write_text(content)
    refused = command("down", "--remove", "--folder", foreign)
    assert refused.returncode == 2
    assert f"{foreign}/state.json: not the state of a cluster" in refused.stderr
    monkeypatch.setattr(clusters, "find_programs", lambda: Path("/"))
    with pytest.raises(InputError, match=r"state\.json: not the state .* Choose another folder"):
        Cluster(foreign).up()
    assert (foreign / "state.json").read_text() == content
    (foreign / "state.json").unlink()
    (foreign / "lock").unlink()
    assert all_there(foreign)
    assert foreign.stat().st_mode & 0o777 == 0o755


def test_files_added_to_a_clusters_folder_are_kept(tmp_path: Path) -> None:
    places, elsewhere = Places(tmp_path / "cluster"), tmp_path / "large-disk"
    places.make()
    (places.folder / "runs" / "night").mkdir()
    write_private(places.environment, "export A=1")
    (places.folder / "state.json.77").write_text("half")
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    (places.folder / "artifacts").rmdir()
    (places.folder / "artifacts").symlink_to(elsewhere)
    (places.folder / "thesis.txt").write_text("years")
    said: list[str] = []
    Cluster(places.folder, said.append).down(remove=True)
    assert [entry.name for entry in places.folder.iterdir()] == ["thesis.txt"]
    assert said == [f"{places.folder} is kept: it contains thesis.txt, not part of the cluster"]
    assert (elsewhere / "kept").exists()


def test_a_clusters_folder_is_removed(tmp_path: Path) -> None:
    places = Places(tmp_path / "cluster")
    places.make()
    State(nodes=2).save(places)
    places.make()
    assert State.load(places).nodes == 2, "the state is kept"
    assert command("down", "--folder", places.folder).returncode == 0
    assert (places.folder / "secrets").is_dir()
    assert command("down", "--remove", "--folder", places.folder).returncode == 0
    assert not places.folder.exists()


def test_a_folder_left_by_an_interrupted_first_up_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    (tmp_path / "state.json.99").write_text("{")
    Places(tmp_path).make()
    assert State.load(Places(tmp_path)) == State()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that PostgreSQL's user can traverse."""
    folder = Path(tempfile.mkdtemp(prefix="evosearch-cluster-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql")
def test_a_database_error_is_reported_in_one_message(reachable: Path) -> None:
    places = Places(reachable / "cluster")
    places.make()
    server = Postgres(places.folder / "postgres")
    server.start(durable=False, die_with_parent=True)
    try:
        server.passfile.write_text(f"127.0.0.1:{server.port}:*:evosearch:another\n")
        failed = command("up", "--folder", places.folder)
    finally:
        server.stop()
    assert failed.returncode == 1
    assert "cluster: " in failed.stderr
    assert "password authentication failed" in failed.stderr
    assert "Traceback" not in failed.stderr
