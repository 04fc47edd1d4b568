"""`scripts/cluster test`, as anybody runs it: a cluster of its own, a search on it, a node lost in the middle."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evosearch.devcluster.postgres import find_programs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cluster"
STAGES = (
    "models made",
    "cluster up",
    "doors shut",
    "submitted",
    "first candidate scored",
    "node-2 frozen",
    "loopback only",
    "node-2 lost at work",
    "search ended",
    "ledger",
    "leaderboard, over REST",
    "registry, over REST",
    "node-2 up again",
    "no secret told",
    "cluster down",
)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql")
def test_a_search_outlives_a_node_and_all_records_agree(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"EVOSEARCH_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "test"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )  # it bounds its own stages
    print(done.stdout)  # which stage took how long
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.findall(r"^(\S.*): \d+\.\d s$", done.stdout, re.MULTILINE) == list(STAGES)
    assert re.search(r"^  \d+ results, none lost, none twice; scored elsewhere: \S", done.stdout, re.MULTILINE)
    assert re.search(r"^  \d+ runs, \d+ scores equal to the ledger's$", done.stdout, re.MULTILINE)
    assert re.search(r"^  version 1 of 'cluster-trial' is champion: candidate \S", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("passed\n")
