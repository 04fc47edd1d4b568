"""What is written down holds no secret and nothing that runs: ledger, tracking store, exports, logs."""

import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

World = Callable[..., Path]
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "canary-user-5d1f",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-9c2e",
    "MLFLOW_TRACKING_TOKEN": "canary-bearer-71aa",
    "PGPASSWORD": "canary-postgres-40b7",
    "HF_TOKEN": "canary-hub-e83d",
    "RAY_AUTH_TOKEN": "canary-ray-16f0",
    "AWS_SECRET_ACCESS_KEY": "canary-s3-b2c4",
}
INERT = {".yaml", ".yml", ".json", ".jsonl", ".safetensors", ".md", ".jinja", ".model", ".txt", ".db", ""}


@pytest.mark.slow
def test_a_whole_search_leaves_no_secret_and_nothing_that_runs(world: World, tmp_path: Path) -> None:
    spec = world(
        budget={"candidates": 6},
        tracking={"uri": f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"},
        promotion={"finalists": 2, "register_as": "world", "checkpoint": True},
    )
    printed = _evosearch(spec, "run", str(spec), "--json")
    for form in ("recipe", "mergekit", "checkpoint"):
        out = tmp_path / "exports" / (form if form == "checkpoint" else f"{form}.yaml")
        printed += _evosearch(spec, "export", "world", "--candidate", "0", "--format", form, "-o", str(out))
    printed += _evosearch(spec, "status") + _evosearch(spec, "leaderboard", "world")

    files = [path for folder in ("runs", "exports") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".db", ".yaml", ".safetensors"}, "the search left its records"
    found = {str(path): path.read_bytes() for path in files}
    found["what was printed"] = printed
    found["the ledger, unpacked"] = _unpacked(tmp_path / "runs" / "world" / "ledger.db")
    for where, content in found.items():
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} stands in {where}"

    for path in files:
        assert path.suffix in INERT, path
        assert not os.access(path, os.X_OK), path
        assert not _is_pickle(path), path


def _evosearch(spec: Path, *arguments: str) -> bytes:
    """Everything a command prints. The gate may say no: that is not what is tried here."""
    command = [sys.executable, "-m", "evosearch.cli.main", *arguments]
    environment = {**os.environ, **SECRETS, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode in (0, 3), done.stderr.decode()
    return done.stdout + done.stderr


def _unpacked(ledger: Path) -> bytes:
    """The blobs of the ledger, which are compressed, as they were written."""
    with sqlite3.connect(ledger) as connection:
        rows = connection.execute(
            "SELECT data FROM ledger_item_sets UNION ALL SELECT data FROM ledger_scores"
        ).fetchall()
        events = connection.execute("SELECT payload FROM ledger_events").fetchall()
    assert rows
    assert events
    return b"".join([*(zlib.decompress(data) for (data,) in rows), *(payload.encode() for (payload,) in events)])


def _is_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or later, alone or in a zip archive as torch writes it."""
    head = path.read_bytes()[:4]
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or head == b"PK\x03\x04"
