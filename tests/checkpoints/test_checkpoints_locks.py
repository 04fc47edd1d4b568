"""The lock of a cache: one owner at a time, named in the file."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from evosearch.checkpoints.cache.locks import locked

HOLD = """
import sys
from pathlib import Path
from evosearch.checkpoints.cache.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_and_the_file_names_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "prepare"
    path.parent.mkdir()
    path.write_text("the name of a host that is longer than any other:1234567890\n")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        seen: list[str] = []

        def waiting() -> None:
            seen.append(path.read_text())
            assert holder.stdin is not None
            holder.stdin.close()

        with locked(path, waiting):
            assert seen == [f"{socket.gethostname()}:{holder.pid}\n"]
            assert path.read_text() == f"{socket.gethostname()}:{os.getpid()}\n"
            assert holder.wait(30) == 0
