"""`python -m benchmarks.cluster_proof`: a search on a cluster of its own survives the loss of a node."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evosearch.devcluster.postgres import find_programs

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    "models ready",
    "cluster up",
    "unauthenticated requests rejected",
    "submitted",
    "first candidate scored",
    "node-2 suspended",
    "loopback only",
    "node-2 lost during a job",
    "search ended",
    "ledger",
    "leaderboard, over REST",
    "registry, over REST",
    "node-2 up again",
    "no secret leaked",
    "cluster down",
)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql")
def test_a_search_survives_the_loss_of_a_node_and_all_records_agree(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"EVOSEARCH_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.cluster_proof"]  # has a time limit for each stage
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)  # seconds of each stage
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.findall(r"^(\S.*): \d+\.\d s$", done.stdout, re.MULTILINE) == list(STAGES)
    assert re.search(r"^  \d+ results, none lost, none duplicated; retried: \S", done.stdout, re.MULTILINE)
    assert re.search(r"^  \d+ runs, \d+ scores equal to the ledger's$", done.stdout, re.MULTILINE)
    assert re.search(r"^  version 1 of 'cluster-proof' is champion: candidate \S", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("passed\n")
