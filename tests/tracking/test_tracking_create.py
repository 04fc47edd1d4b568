"""Creation of MLflow's SQLite store: completely or not at all, once, and again if the file is gone."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import TrackingError
from evosearch.tracking import client as client_module
from evosearch.tracking.client import connect

pytestmark = pytest.mark.slow
NewStore = Callable[[str], str]
LONG_S = 400.0  # MLflow is slow to import, and the machine is shared


def experiments(database: Path) -> set[str]:
    """Names of the experiments in a file, read without MLflow and its connections."""
    opened = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return {name for (name,) in opened.execute("SELECT name FROM experiments")} - {"Default"}
    finally:
        opened.close()


def test_a_store_behind_a_link_is_created_alone_and_again_once_it_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    database, link = tmp_path / "disk" / "runs.db", tmp_path / "mlflow.db"
    link.symlink_to(database)
    uri = f"sqlite:///{link}"
    connect(uri).create_experiment("one")
    assert link.is_symlink()
    assert experiments(database) == {"one"}
    assert [path.name for path in database.parent.iterdir()] == ["runs.db"], "no draft, journal or log"

    database.unlink()  # MLflow keeps a connection to it for this URI
    connect(uri).create_experiment("two")
    assert experiments(database) == {"two"}
    assert [path.name for path in database.parent.iterdir()] == ["runs.db"]

    database.write_bytes(b"")  # as a killed program leaves it
    connect(uri).create_experiment("three")
    assert experiments(database) == {"three"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_a_store_of_a_faster_process_is_kept(
    links: bool, new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = new_store("faster")
    connect(faster).create_experiment("theirs")
    database, real = tmp_path / "new" / "mlflow.db", os.link

    def late(draft: Path, name: Path) -> None:
        shutil.copy(faster.removeprefix("sqlite:///"), name)
        if not links:
            raise OSError(95, "Operation not supported")
        real(draft, name)

    monkeypatch.setattr(client_module.os, "link", late)
    client = connect(f"sqlite:///{database}")
    monkeypatch.undo()
    assert client.get_experiment_by_name("theirs") is not None
    client.create_experiment("ours")
    assert experiments(database) == {"theirs", "ours"}
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]


CREATE = """
import sys
from evosearch.tracking.client import connect
connect(sys.argv[1]).create_experiment(sys.argv[2])
"""


def test_two_processes_at_once_share_one_store(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    both = [
        subprocess.Popen([sys.executable, "-c", CREATE, f"sqlite:///{database}", name], stderr=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for process in both:
        _, err = process.communicate(timeout=LONG_S)
        assert process.returncode == 0, err.decode()
    assert experiments(database) == {"one", "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that other users may enter, but not change."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        yield Path(folder)
        Path(folder).chmod(0o700)


REFUSED = """
import os, sys
import evosearch.tracking.client as client
import mlflow.store.tracking.sqlalchemy_store
from evosearch.errors import TrackingError
client.load_mlflow()
from mlflow import MlflowClient
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    client.connect(sys.argv[1])
except TrackingError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_written_is_named(outside: Path) -> None:
    database = outside / "mlflow.db"
    command = [sys.executable, "-c", REFUSED, f"sqlite:///{database}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    said = f"tracking.uri: {database} cannot be created: Permission denied. Free disk space, change the permissions of"
    assert done.stdout.startswith(said), done.stderr
    assert list(outside.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client_module, "_publish", full)
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be created: No space left on device\. Free disk space"):
        connect(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert list((tmp_path / "new").iterdir()) == []


ENDED = """
import sys, threading
import evosearch.tracking.client as client
reached = threading.Event()
def publish(draft, database):
    reached.set()
    while True:  # as SQLite, which makes its journal again
        (draft.parent / "journal").touch()
client._publish = publish
threading.Thread(target=client.connect, args=(sys.argv[1],), daemon=True).start()
assert reached.wait(300)
"""


def test_a_program_may_end_while_its_thread_creates_a_store(tmp_path: Path) -> None:
    """A draft is left then, and removed by the next one."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", ENDED, uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert [path.name[:8] for path in tmp_path.iterdir()] == [".mlflow-"]
    connect(uri).create_experiment("one")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
