"""Where everything of a cluster lies, in one folder, and what is recorded of its processes.

FOLDER/state.json     ports, and of each part its process
FOLDER/environment    0600, for a shell: what a client needs
FOLDER/secrets/       0700: Ray's token, the accounts' passwords
FOLDER/logs/          what each part says
FOLDER/postgres/      the databases          FOLDER/artifacts/   what MLflow keeps of runs and models
FOLDER/runs/          folders of searches    FOLDER/ray/         Ray's sockets and logs, unless the path is too long
FOLDER/lock           held by the command that starts or stops parts

A folder is a cluster's where there is state.json, which is written first; nothing else is ever removed.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from evosearch.devcluster.private import write_private
from evosearch.devcluster.processes import Process
from evosearch.errors import InputError

FILES, FOLDERS = ("environment", "state.json", "lock"), ("secrets", "logs", "artifacts", "runs", "postgres", "ray")
LONGEST_RAY = 36  # characters of the folder of Ray's nodes: a socket's path in it has 65 more, and may have 107


@dataclass(frozen=True)
class Places:
    """The folder of a cluster."""

    folder: Path

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def token(self) -> Path:
        """Of Ray, in the form that RAY_AUTH_TOKEN_PATH names."""
        return self.secrets / "ray-token"

    @property
    def environment(self) -> Path:
        return self.folder / "environment"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    def log(self, part: str) -> Path:
        return self.folder / "logs" / f"{part}.log"

    def make(self) -> None:
        """Make the folders. Only root's is passable: another user, who runs PostgreSQL, has to get to its databases.

        Raises:
            InputError: the folder holds something else than a cluster.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refuse_anothers()
        with self._lock():
            self._refuse_anothers()
            if not self.state.is_file():
                State().save(self)
            State.load(self)  # or it is another program's file
            self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for name in ("secrets", "logs", "artifacts", "runs"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> list[str]:
        """Delete what a cluster makes, and the folder where nothing else is in it; returns what else there is."""
        for name in FOLDERS:
            entry = self.folder / name
            if entry.is_symlink():
                entry.unlink()  # what it leads to was not made here
            elif entry.exists():
                shutil.rmtree(entry)
        for name in FILES:
            for file in (self.folder / name, *self.folder.glob(f"{name}.[0-9]*")):  # half-written ones, too
                file.unlink(missing_ok=True)
        left = sorted(entry.name for entry in self.folder.iterdir())
        if not left:
            self.folder.rmdir()
        return left

    def _refuse_anothers(self) -> None:
        names = [entry.name for entry in self.folder.iterdir()]
        others = sorted(name for name in names if name != "lock" and not name.startswith("state.json"))
        if others and not self.state.is_file():
            what = f"there is no cluster in this folder, and it is not empty: {', '.join(others[:3])}"
            allowed = "A new folder, an empty one or a cluster's"
            raise InputError(str(self.folder), what, allowed, "Choose another")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time starts and stops parts; it waits for the other.

        Raises:
            InputError: there is no cluster in the folder.
        """
        if not self.state.is_file():
            what = "there is no cluster in this folder"
            raise InputError(str(self.folder), what, next="scripts/cluster up")
        with self._lock():
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        file = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


@dataclass
class State:
    """What is recorded: of each part its process, ports by name, the nodes wanted, and Ray's folder."""

    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    cpus_per_node: int = 0
    gpus_per_node: int = 0
    ray: str = ""

    @classmethod
    def load(cls, places: Places) -> Self:
        """As it was saved; empty where nothing was.

        Raises:
            InputError: the file is no cluster's, or one of another version.
        """
        try:
            data: dict[str, Any] = json.loads(places.state.read_text())
            return cls(**data | {"processes": {name: Process(**found) for name, found in data["processes"].items()}})
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            what = f"this version of scripts/cluster does not record a cluster so ({type(exc).__name__}: {exc})"
            next = "Choose another folder; if a cluster of an earlier version runs from it, end its processes by hand"
            raise InputError(str(places.state), what, next=next) from None

    def save(self, places: Places) -> None:
        processes = {name: vars(process) for name, process in self.processes.items()}
        write_private(places.state, json.dumps(vars(self) | {"processes": processes}, indent=1) + "\n")

    def ray_folder(self, places: Places) -> Path:
        """Where Ray's nodes have their folders; made where it is not there."""
        own = places.folder / "ray"
        if not self.ray:
            short = len(str(own)) <= LONGEST_RAY
            self.ray = str(own) if short else tempfile.mkdtemp(prefix="evosearch-")
        folder = Path(self.ray)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
