"""Processes of a cluster: all descendants are stopped, and unrelated processes with a reused id are not."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from evosearch.devcluster.processes import Process, last_lines, launch, start, wait_until
from evosearch.errors import SearchError

# A process with a child in another process group of the same session
FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '600'], process_group=0); print('up'); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
LONG_S = 120.0  # limit on a busy machine


def python(code: str, tmp_path: Path) -> tuple[Process, Path]:
    log = tmp_path / "log"
    return start([sys.executable, "-u", "-c", code], os.environ, tmp_path, log), log


def said(log: Path) -> str | None:
    return None if "up" in log.read_text() else "not up"


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=LONG_S)[1]


def test_a_process_is_killed_with_all_its_descendants(tmp_path: Path) -> None:
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    members = process.members()
    assert len(members) == 2
    assert process.running
    process.kill()
    assert gone(members)
    assert not process.running


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process, log = python(STUBBORN, tmp_path)
    wait_until("stubborn", lambda: said(log), process, log, LONG_S)
    began = time.monotonic()
    process.stop(within_s=0.5)
    assert time.monotonic() - began > 0.5
    assert not process.running


def test_an_unrelated_process_with_the_same_id_is_not_killed(tmp_path: Path) -> None:
    """After a reboot, or much later, the id may belong to another process, such as a login shell."""
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    for recorded in (
        replace(process, ticks=process.ticks - 6000, mark="another"),  # recorded before the session began
        replace(process, ticks=process.ticks + 6000, mark="another"),
        replace(process, boot="another"),
    ):
        assert not recorded.running
        assert recorded.members() == []
        recorded.stop()
        recorded.kill()
        assert len(process.members()) == 2, recorded
    process.kill()


def test_a_session_without_its_first_process_is_recognized_by_the_mark(tmp_path: Path) -> None:
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    first, child = sorted(process.members(), key=lambda member: member.pid != process.pid)
    first.kill()
    assert gone([first])
    assert replace(process, mark="another").members() == replace(process, mark="").members() == []
    assert process.members() == [child]
    assert not process.running
    process.kill()
    assert gone([child])


def test_descendants_in_other_sessions_are_found_by_the_mark(tmp_path: Path) -> None:
    process, log = python(FAMILY.replace("process_group=0", "start_new_session=True"), tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    first, child = sorted(process.members(), key=lambda member: member.pid != process.pid)
    first.kill()
    assert gone([first])
    process.stop(within_s=0.5)
    assert gone([child])


def test_processes_without_the_mark_belong_to_a_living_session(tmp_path: Path) -> None:
    """Ray's processes overwrite their environment with a title, so that /proc no longer shows the mark."""
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    unmarked = replace(process, mark="unseen")
    members = unmarked.members()
    assert len(members) == 2, "its first process is alive, so the session is its own"
    members[0].kill() if members[0].pid == process.pid else members[1].kill()
    assert gone([member for member in members if member.pid == process.pid])
    assert unmarked.members() == []
    assert [one.pid for one in unmarked.members(known=members)] == [m.pid for m in members if m.pid != process.pid]
    unmarked.kill(known=members)
    assert gone(members)


def test_a_change_of_the_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, LONG_S)
    before, boot = process.started, psutil.boot_time()
    assert abs(before - time.time()) < 60
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: boot + 3600.0)  # as /proc/stat's btime would change
    assert process.running
    assert len(process.members()) == 2
    assert process.started == before + 3600.0
    process.kill()
    assert not process.running


def test_a_part_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    process, log = python("print('the port is taken'); raise SystemExit(3)", tmp_path)
    with pytest.raises(SearchError, match=r"(?s)server ended\. The end of .*log:\nthe port is taken"):
        wait_until("server", lambda: "no answer", process, log, LONG_S)


def test_a_part_that_takes_too_long_is_reported_with_the_reason(tmp_path: Path) -> None:
    process, log = python("print('up'); import time; time.sleep(600)", tmp_path)
    with pytest.raises(SearchError, match=r"server is not healthy after 1 s \(no answer\)"):
        wait_until("server", lambda: "no answer", process, log, 1.0)
    process.kill()


def test_logs_are_private(tmp_path: Path) -> None:
    process, log = python("print('up')", tmp_path)
    process.kill()
    assert log.stat().st_mode & 0o777 == 0o600
    log.write_text("".join(f"{line}\n" for line in range(100)))
    assert last_lines(log).splitlines() == [str(line) for line in range(85, 100)]


def test_launch_gives_access_to_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    popen, process = launch(command, os.environ, tmp_path, tmp_path / "log")
    assert popen.wait(LONG_S) == 3
    assert not process.running
    with pytest.raises(psutil.NoSuchProcess):
        Process.of(process.pid)


def test_an_unmarked_process_is_identified_while_it_lives() -> None:
    popen = subprocess.Popen([sys.executable, "-u", "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True)
    assert popen.stdout is not None
    assert popen.stdout.readline() == b"up\n"
    process = Process.of(popen.pid)
    members = process.members()
    assert len(members) == 2
    process.kill()
    popen.wait()
    popen.stdout.close()
    assert gone(members)
