"""Layout of a cluster's folder, and the state of its processes.

FOLDER/state.json     ports, and the process of each part
FOLDER/environment    0600: environment variables of a client, for a shell
FOLDER/secrets/       0700: Ray's token, the accounts' passwords
FOLDER/logs/          a log for each part
FOLDER/postgres/      databases              FOLDER/artifacts/   MLflow's artifacts
FOLDER/runs/          folders of searches    FOLDER/ray/         Ray's sockets and logs, unless the path is too long
FOLDER/lock           lock of the command that starts or stops parts

A folder belongs to a cluster if it contains state.json, which is written first. Other files are never removed.
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
LONGEST_RAY = 36  # maximum length of the path of Ray's folder: socket paths add 65 characters, and the limit is 107


@dataclass(frozen=True)
class Places:
    """Paths in the folder of a cluster."""

    folder: Path

    @property
    def secrets(self) -> Path:
        """Folder of passwords and tokens."""
        return self.folder / "secrets"

    @property
    def token(self) -> Path:
        """File with Ray's token, for RAY_AUTH_TOKEN_PATH."""
        return self.secrets / "ray-token"

    @property
    def environment(self) -> Path:
        """Environment variables of a client, for a shell."""
        return self.folder / "environment"

    @property
    def state(self) -> Path:
        """File with the state of processes and ports."""
        return self.folder / "state.json"

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.folder / "logs" / f"{part}.log"

    def make(self) -> None:
        """Create the folders with private modes; for root, PostgreSQL's unprivileged user may traverse the top one.

        Raises:
            InputError: The folder contains something other than a cluster.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign()
        with self._lock():
            self._refuse_foreign()
            if not self.state.is_file():
                State().save(self)
            State.load(self)  # raises if the file is another program's
            self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for name in ("secrets", "logs", "artifacts", "runs"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> list[str]:
        """Delete everything that a cluster creates, and the folder unless it has other files; return their names."""
        for name in FOLDERS:
            entry = self.folder / name
            if entry.is_symlink():
                entry.unlink()  # its target was not created here
            elif entry.exists():
                shutil.rmtree(entry)
        for name in FILES:
            for file in (self.folder / name, *self.folder.glob(f"{name}.[0-9]*")):  # also half-written ones
                file.unlink(missing_ok=True)
        left = sorted(entry.name for entry in self.folder.iterdir())
        if not left:
            self.folder.rmdir()
        return left

    def _refuse_foreign(self) -> None:
        names = [entry.name for entry in self.folder.iterdir()]
        others = sorted(name for name in names if name != "lock" and not name.startswith("state.json"))
        if others and not self.state.is_file():
            what = f"this folder is not empty and contains no cluster: {', '.join(others[:3])}"
            allowed = "A new or empty folder, or one with a cluster"
            raise InputError(str(self.folder), what, allowed, "Choose another")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Acquire the lock for starting and stopping parts; waits for another command that owns it.

        Raises:
            InputError: There is no cluster in the folder.
        """
        if not self.state.is_file():
            what = "there is no cluster in this folder"
            raise InputError(str(self.folder), what, next="Start one: evosearch cluster up")
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
    """State of a cluster: processes by part, ports by name, the requested nodes, and Ray's folder."""

    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    cpus_per_node: int = 0
    gpus_per_node: int = 0
    ray: str = ""

    @classmethod
    def load(cls, places: Places) -> Self:
        """Read the state; it is empty if there is no file.

        Raises:
            InputError: The file is not the state of a cluster.
        """
        try:
            data: dict[str, Any] = json.loads(places.state.read_text())
            return cls(**data | {"processes": {name: Process(**found) for name, found in data["processes"].items()}})
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            what = f"not the state of a cluster ({type(exc).__name__}: {exc})"
            raise InputError(str(places.state), what, next="Choose another folder") from None

    def save(self, places: Places) -> None:
        """Write the state."""
        processes = {name: vars(process) for name, process in self.processes.items()}
        write_private(places.state, json.dumps(vars(self) | {"processes": processes}, indent=1) + "\n")

    def ray_folder(self, places: Places) -> Path:
        """Return the folder of Ray's nodes, created if necessary."""
        own = places.folder / "ray"
        if not self.ray:
            short = len(str(own)) <= LONGEST_RAY
            self.ray = str(own) if short else tempfile.mkdtemp(prefix="evosearch-")
        folder = Path(self.ray)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
