"""`evosearch ledger` on the record of real searches: verified, copied while it is written, damaged and recovered."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evosearch.search.ledger.ledger import Ledger

pytestmark = pytest.mark.slow
World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
LONG_S = 600.0  # limit of each wait, on a busy machine
PAGE = 4096
MAY_DIFFER = ("seconds", "worker")


def recorded(ledger: Path) -> tuple[list[tuple[str, Any]], dict[tuple[str, str], Any]]:
    """What the optimizer proposed and was told, and all item scores, without times and workers."""
    with Ledger.open(f"sqlite:///{ledger}", read_only=True) as opened:
        (info,) = opened.searches()
        events = opened.events(info.search_id, types=["asked", "told", "scored"])
        plain = [(e.type, {k: v for k, v in e.payload.items() if k not in MAY_DIFFER}) for e in events]
        scored = [(e.payload["candidate"], e.payload["split"]) for e in events if e.type == "scored"]
        columns = {key: opened.columns(info.search_id, *key) for key in scored}
    return plain, columns


def same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        same(value, other[key]) if isinstance(value, dict) else np.array_equal(value, other[key], equal_nan=True)
        for key, value in one.items()
    )


def test_a_damaged_ledger_is_told_recovered_and_continued_exactly(
    world: World, evosearch: Evosearch, tmp_path: Path
) -> None:
    spec = world(budget={"candidates": 18})
    ledger = tmp_path / "runs" / "world" / "ledger.db"
    assert evosearch("run", spec)[0] in (0, 3)
    whole, columns = recorded(ledger)

    code, out, err = evosearch("ledger", "verify", spec, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["ok"]
    assert report["replayed"] == [{"name": "world", "proposals": 18, "problem": None}]
    assert evosearch("ledger", "backup", "world", "-o", tmp_path / "backup.db")[0] == 0
    code, _, err = evosearch("ledger", "backup", "world", "-o", tmp_path / "backup.db")
    assert (code, "backup.db: already exists. Choose another file" in err) == (2, True)
    assert recorded(tmp_path / "backup.db")[0] == whole

    shutil.copytree(ledger.parent, tmp_path / "runs" / "other")  # another search, that is intact
    pages, draw = ledger.stat().st_size // PAGE, random.Random(2)
    with ledger.open("r+b") as file:
        for page in draw.sample(range(pages // 2, pages), pages // 5):
            file.seek(page * PAGE)
            file.write(draw.randbytes(PAGE))
    before = ledger.read_bytes()
    for command in (("run", spec), ("leaderboard", "world"), ("export", "world", "-o", tmp_path / "x.yaml")):
        code, _, err = evosearch(*command)
        assert code == 2, command
        assert f"{ledger} is damaged" in err, command
        assert "evosearch ledger recover" in err
        assert "disk space" not in err
        assert "Traceback" not in err
    code, out, _ = evosearch("status", "--json")
    states = {row["ledger"].split("/")[-2]: row["state"] for row in json.loads(out)}
    assert code == 0
    assert states["world"] == "unreadable"
    assert states["other"].startswith("stopped: ")
    assert ledger.read_bytes() == before

    code, out, err = evosearch("ledger", "recover", "world", "--json")
    assert code == 0, err
    (found,) = json.loads(out)["searches"]
    assert found["name"] == "world"
    assert 0 < found["kept"] < len(whole) + 20
    assert ledger.with_name("ledger.db.damaged").read_bytes() == before
    assert evosearch("ledger", "verify", spec)[0] == 0
    code, _, err = evosearch("ledger", "recover", "world")
    assert (code, "ledger.db.damaged: left by an earlier recovery" in err) == (2, True)
    assert evosearch("run", spec)[0] in (0, 3)
    again, new_columns = recorded(ledger)
    assert [one for one in again if one[0] != "scored"] == [one for one in whole if one[0] != "scored"]
    assert same(new_columns, columns), "every score again, bit for bit"


def test_one_damaged_search_hides_no_other_in_its_ledger(world: World, evosearch: Evosearch, tmp_path: Path) -> None:
    shared = tmp_path / "shared.db"
    for name in ("first", "second"):
        assert evosearch("run", world(name, budget={"candidates": 2}, ledger=f"sqlite:///{shared}"))[0] in (0, 3)
    with Ledger.open(f"sqlite:///{shared}") as ledger:
        info = ledger.search_by_name("first")
        assert info is not None
        statement = "UPDATE ledger_events SET payload = substr(payload, 1, length(payload) - 10)"
        where = f"WHERE search_id = '{info.search_id}' AND seq = 5"
        ledger._database.write(lambda connection: connection.exec_driver_sql(f"{statement} {where}"))
    code, out, err = evosearch("status", "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["first"]["state"] == "unreadable"
    assert f"event 5 of search {info.search_id[:12]} has changed since it was written" in rows["first"]["problem"]
    assert rows["second"]["state"].startswith("stopped: ")
    code, out, err = evosearch("status")
    assert code == 0, err
    assert evosearch("leaderboard", "second")[0] == 0
    code, _, err = evosearch("leaderboard", "first")
    assert (code, "event 5 of search" in err, "Traceback" in err) == (2, True, False)
    code, out, _ = evosearch("ledger", "verify", f"sqlite:///{shared}")
    assert code == 1
    assert "event 5 of search" in out
    assert "DAMAGED" in out


def test_a_backup_of_a_running_search_can_be_resumed(world: World, evosearch: Evosearch, tmp_path: Path) -> None:
    spec, ledger = world(budget={"candidates": 100_000}), tmp_path / "runs" / "world" / "ledger.db"
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LONG_S
        code = 2
        while code != 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
            log = ledger.with_name("ledger.db-wal")
            if log.exists() and b"told" in log.read_bytes():
                code, _, err = evosearch("ledger", "backup", "world", "-o", tmp_path / "copy.db")
                assert code == 0, err
                code, _, err = evosearch("ledger", "recover", "world")
                assert (code, f"is in use by process {process.pid}" in err) == (1, True), err
                code = 0
        assert process.poll() is None, "it was not disturbed"
    finally:
        process.terminate()
        process.wait(LONG_S)
    assert evosearch("ledger", "verify", tmp_path / "copy.db")[0] == 0
    events, _ = recorded(ledger)
    copied, _ = recorded(tmp_path / "copy.db")
    assert copied == events[: len(copied)]
    assert copied
