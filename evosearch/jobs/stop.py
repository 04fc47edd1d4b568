"""Stop a search on this machine, as with Ctrl-C in its terminal."""

import os
import re
import signal
import socket
import time
from dataclasses import asdict
from typing import Any

from evosearch.errors import LedgerError
from evosearch.reporting.status import LedgerRow, row_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.lock import this_host
from evosearch.service.stages_lock import runner
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import RunDir

STOP_S = 120.0  # scoring in the same process cannot be interrupted inside a kernel
POLL_S = 0.2
HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+),")


def stop_here(search: str) -> dict[str, Any]:
    """Stop the process that runs a search, and wait until it has ended.

    Args:
        search: Name, folder or spec of the search.

    Returns:
        Its row as in `status`, with `was`, the previous state, and `clean`, whether it recorded its shutdown.

    Raises:
        LedgerError: There is no such search, it runs on another machine, or it has not ended in time.
    """
    run_dir = find(search)
    before = _row(run_dir)
    if (holder := before.held_by or runner(run_dir.folder)) is None:
        return asdict(before) | {"was": before.state, "clean": True}
    pid = _process(holder, search)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it has just ended
        pass
    except PermissionError:
        raise LedgerError(search, f"process {pid} belongs to another user", next="Stop it as that user") from None
    deadline = time.monotonic() + STOP_S
    while (now := _row(find(search))).held_by or runner(run_dir.folder):
        if time.monotonic() > deadline:
            what = f"process {pid} has not ended {STOP_S:.0f} s after it was stopped"
            raise LedgerError(search, what, next=f"Kill it; its records are kept: kill -9 {pid}")
        time.sleep(POLL_S)
    return asdict(now) | {"was": "running", "clean": now.state.startswith("stopped")}


def _row(run_dir: RunDir) -> LedgerRow:
    with Ledger.open(run_dir.ledger, run_dir.name, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        return row_of(ledger, search_id, str(ledger.url))


def _process(holder: str, search: str) -> int:
    """Return the pid of a ledger's holder.

    Raises:
        LedgerError: It runs on another machine.
    """
    found = HOLDER.search(holder)
    if found is None or found["host"] not in (socket.gethostname(), this_host()):
        raise LedgerError(search, f"it is run by {holder}", "A search on this machine", "Stop it there")
    return int(found["pid"])
