"""Environment variables of a cluster's nodes and clients. They pass secrets, so that job descriptions contain none."""

import os
import shlex
import sys
from collections.abc import Mapping

from evosearch.checkpoints.references import default_cache
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret, write_private
from evosearch.devcluster.processes import HOST
from evosearch.environment import TELEMETRY_OFF
from evosearch.execution.ray_settings import NO_METRICS
from evosearch.spec.run_dir import data_folder

ACCOUNT = "evosearch"  # MLflow account for searches
FOREIGN = ("RAY_", "MLFLOW_", "PG", "EVOSEARCH_")  # prefixes of variables that may belong to another cluster


def dashboard(state: State) -> str:
    """Return the URL of Ray's dashboard."""
    return f"http://{HOST}:{state.ports['dashboard']}"


def tracking(state: State) -> str:
    """Return the URL of the MLflow server."""
    return f"http://{HOST}:{state.ports['mlflow']}"


def of_clients(places: Places, state: State, postgres: Postgres) -> dict[str, str]:
    """Return the variables for clients, which submit and follow searches and read ledger and tracking server."""
    return {
        "EVOSEARCH_ADDRESS": dashboard(state),
        "EVOSEARCH_RUNS": str(places.folder / "runs"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(places.token),
        # Despite its name: without it Ray replaces 127.0.0.1 by the machine's own address, where no part listens
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PGPASSFILE": str(postgres.passfile),
        "MLFLOW_TRACKING_URI": tracking(state),
        "MLFLOW_TRACKING_USERNAME": ACCOUNT,
        "MLFLOW_TRACKING_PASSWORD": secret(places.secrets / "mlflow-evosearch"),
    }


def of_nodes(places: Places, state: State, postgres: Postgres) -> dict[str, str]:
    """Return the full environment of a Ray node, which its jobs and workers inherit."""
    ours = {
        "EVOSEARCH_PYTHON": sys.executable,
        "EVOSEARCH_CACHE": str(default_cache()),
        "EVOSEARCH_DATA": str(data_folder()),
        "EVOSEARCH_RAY_ADDRESS": f"{HOST}:{state.ports['ray']}",  # for jobs, to which Ray may pass another cluster's
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAY_JOB_START_TIMEOUT_SECONDS": "604800",  # a search may wait in the queue for a week
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # time for a stopped search to write its records
    }
    clients = of_clients(places, state, postgres)
    del clients["EVOSEARCH_ADDRESS"]
    return inherited(os.environ) | TELEMETRY_OFF | NO_METRICS | clients | ours


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a cluster's processes inherit from an environment."""
    return {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}


def write(places: Places, state: State, postgres: Postgres) -> None:
    """Write FOLDER/environment, for `. FOLDER/environment` in a shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in of_clients(places, state, postgres).items()]
    lines.append("unset RAY_ADDRESS")
    write_private(places.environment, "\n".join(lines) + "\n")
