"""Private PostgreSQL server: in one folder, on loopback only, with a random password.

FOLDER/data       the databases, owned by an unprivileged user if this process runs as root
FOLDER/passfile   0600: the password, for clients with PGPASSFILE=FOLDER/passfile
FOLDER/port       the latest port
FOLDER/log        the server's log
"""

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from evosearch.devcluster.private import write_private
from evosearch.errors import InputError, SearchError

USER = "evosearch"  # the only role, a superuser
HOST = "127.0.0.1"
DEADLINE_S = 60.0  # for the server to start or to stop
UNPRIVILEGED = ("postgres", "nobody")  # the server refuses to run as root, so the first existing user of these runs it


def find_programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, from PATH or else the newest version; None if not installed."""
    on_path = [Path(found).resolve().parent for name in ("initdb", "postgres") if (found := shutil.which(name))]
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda entry: _number(entry.parent.name), reverse=True
    )
    return next((entry for entry in on_path + debian if _complete(entry)), None)


class Postgres:
    """The server in a folder. Other `Postgres` objects for the folder control the same server.

    Args:
        folder: Folder of the server; created by `start`.
        port: Port to listen on; 0 for the previous port, or any free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.resolve()
        self.data, self.passfile, self.log = (self.folder / name for name in ("data", "passfile", "log"))
        self._wanted = port
        self._process: subprocess.Popen[bytes] | None = None

    # --- clients ------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The current or latest port."""
        return int((self.folder / "port").read_text())

    def url(self, database: str) -> str:
        """Return a database's URL for SQLAlchemy and libpq; the password is in `passfile`."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Open a connection that commits each statement."""
        url = self.url(database)
        return psycopg.connect(url, passfile=str(self.passfile), autocommit=True, connect_timeout=5)

    # --- start and stop ------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the server is running, even if another process started it."""
        return self._postmaster() is not None

    @property
    def process(self) -> psutil.Process | None:
        """The server's first process, or None."""
        return self._postmaster()

    def start(self, *, durable: bool = True, die_with_parent: bool = False) -> None:
        """Start the server unless it is running, and wait until it answers. The first start creates the databases.

        Args:
            durable: False only for tests: writes do not wait for the disk, so a power failure may lose all data.
            die_with_parent: Stop the server when the thread that started it ends, even by a crash.

        Raises:
            InputError: PostgreSQL is not installed, its user cannot reach the folder, or the port is taken.
            SearchError: It does not start; the message ends with the last lines of its log.
        """
        programs = find_programs()
        if programs is None:
            next = "Install it: apt-get install postgresql (Debian), or put its programs on PATH"
            raise InputError("postgres", "the server programs (initdb, postgres) are not installed", next=next)
        if self.running:
            return
        self._make_folder()
        port = self._choose_port()
        if not (self.data / "PG_VERSION").exists():
            self._make_databases(programs)
        (self.folder / "port").write_text(str(port))
        self._write_passfile(self._password())
        settings = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "logging_collector": "off"}
        if not durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(programs / "postgres"), "-D", str(self.data)]
        command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        if self._process is not None:  # it ended by itself
            self._process.wait(DEADLINE_S)
        self._neutralize_stale_pid()
        with open(self.log, "ab", opener=_private) as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own command)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent if die_with_parent else None,
                **self._as_user(),
            )
        self._await_answer()

    def stop(self) -> None:
        """Stop the server if it is running: clients are disconnected, committed data is kept."""
        self._end(signal.SIGINT)  # "fast shutdown"

    def crash(self) -> None:
        """Kill all processes of the server, as in a power failure; `start` recovers committed data."""
        postmaster = self._postmaster()
        if postmaster is None:
            return
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._end(signal.SIGKILL)

    # --- databases ----------------------------------------------------------------------------------------------

    def create_database(self, name: str) -> None:
        """Create a database if it does not exist."""
        with self.connect() as connection, suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Remove a database, even if it is in use."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def drop_connections(self, database: str) -> int:
        """Close all connections to a database; return how many there were."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        with self.connect() as connection:
            return len(connection.execute(query, (database,)).fetchall())

    # --- internals -------------------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        account = _account()
        if account is None:
            self.folder.chmod(0o700)
            return
        self.folder.chmod(0o711)  # the server's user must traverse it; its contents have their own modes
        for entry in self.folder.parents:
            about = entry.stat()
            if not about.st_mode & 0o001 and about.st_uid != account.pw_uid:
                mode = f"{about.st_mode & 0o777:o}"
                what = f"the server's user, {account.pw_name}, cannot traverse {entry} (mode {mode})"
                raise InputError(str(self.folder), what, next=f"Choose another folder, or: chmod o+x {entry}")

    def _make_databases(self, programs: Path) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # left by an interrupted first start
        password = secrets.token_urlsafe(24)
        self.data.mkdir(mode=0o700)
        password_file = self.data.with_name("password")
        write_private(password_file, password)
        if (account := _account()) is not None:
            os.chown(self.data, account.pw_uid, account.pw_gid)
            os.chown(password_file, account.pw_uid, account.pw_gid)
        command = [str(programs / "initdb"), "-D", str(self.data), "-U", USER, f"--pwfile={password_file}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync"]
        try:
            made = subprocess.run(  # noqa: S603 (our own command)
                command, capture_output=True, text=True, check=False, **self._as_user()
            )
            if made.returncode:
                raise SearchError(f"initdb failed in {self.data}: {made.stderr.strip()}")
            self._write_passfile(password, port=self._wanted)
        except BaseException:
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        finally:
            password_file.unlink()

    def _password(self) -> str:
        try:
            return self.passfile.read_text().rstrip("\n").rsplit(":", 1)[1]  # token_urlsafe: no colon, no backslash
        except (OSError, IndexError):
            what = f"{self.passfile} is missing, and with it the password of the databases in this folder"
            raise InputError(str(self.folder), what, next="Restore it, or choose another folder") from None

    def _write_passfile(self, password: str, port: int | None = None) -> None:
        write_private(self.passfile, f"{HOST}:{self.port if port is None else port}:*:{USER}:{password}\n")

    def _choose_port(self) -> int:
        if self._wanted:
            if not _free(self._wanted):
                raise InputError("postgres", f"port {self._wanted} is in use", next="Choose another port")
            return self._wanted
        with suppress(OSError, ValueError):
            if _free(self.port):
                return self.port
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            return int(probe.getsockname()[1])

    def _as_user(self) -> dict[str, Any]:
        """Return options for starting PostgreSQL's programs: a minimal environment, and a user other than root."""
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "TZ") if key in os.environ}
        options: dict[str, Any] = {"cwd": self.folder, "env": kept | {"LC_ALL": "C"}}
        if (account := _account()) is not None:
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return options

    def _await_answer(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as exc:
                why = str(exc).strip().splitlines()[-1]
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
                raise SearchError(f"PostgreSQL {'ended' if ended else f'does not answer: {why}'}. {self.log}:\n{lines}")
            time.sleep(0.05)

    def _postmaster(self) -> psutil.Process | None:
        """Return the server's first process, even if another process started it."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().splitlines()[0]))
            alive = process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
            return process if alive and self._is_ours(process) else None
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None

    def _neutralize_stale_pid(self) -> None:
        """Write our own pid into a `postmaster.pid` that was left by a crash.

        Otherwise the server refuses to start while any process has the old pid. It treats its parent's pid as stale
        (CreateLockFile in miscinit.c), and still detects from the file's other lines if an old server uses the data.
        """
        stale = self.data / "postmaster.pid"
        with suppress(FileNotFoundError):
            lines = stale.read_text().splitlines(keepends=True)
            stale.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))  # in place, to keep its owner

    def _is_ours(self, process: psutil.Process) -> bool:
        """Return whether a server uses this folder: after a crash, the recorded pid may be another server's."""
        with suppress(psutil.AccessDenied):
            return Path(process.cwd()) == self.data  # the server's working directory
        return str(self.data) in process.cmdline()

    def _end(self, how: signal.Signals) -> None:
        postmaster = self._postmaster()
        if postmaster is not None:
            with suppress(psutil.NoSuchProcess):
                postmaster.send_signal(how)
        if self._process is not None:  # our child: reap it
            self._process.wait(DEADLINE_S)
            self._process = None
        deadline = time.monotonic() + DEADLINE_S
        while self.running:
            if time.monotonic() > deadline:
                raise SearchError(f"PostgreSQL in {self.folder} does not stop; see {self.log}")
            time.sleep(0.02)


def _account() -> pwd.struct_passwd | None:
    """Return the user that runs the server if this process runs as root; None for the current user."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise InputError(
        "postgres", f"no user {' or '.join(UNPRIVILEGED)} to run the server as", next="Do not run this as root"
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the server: ignore lingering connections
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("initdb", "postgres"))


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


def _die_with_parent() -> None:
    """Request SIGINT ("fast shutdown") on the parent's death, by PR_SET_PDEATHSIG of prctl(2); runs in the child."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
