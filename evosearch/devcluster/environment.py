"""The environment of a cluster's nodes, and of its clients: no secret is ever in a job's own description."""

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
from evosearch.spec.run_dir import data_folder

ACCOUNT = "evosearch"  # of MLflow, for searches
FOREIGN = ("RAY_", "MLFLOW_", "PG", "EVOSEARCH_")  # what is set for another cluster is not for this one


def dashboard(state: State) -> str:
    return f"http://{HOST}:{state.ports['dashboard']}"


def tracking(state: State) -> str:
    return f"http://{HOST}:{state.ports['mlflow']}"


def of_clients(places: Places, state: State, postgres: Postgres) -> dict[str, str]:
    """What a client needs to submit searches, follow them, and read ledger and tracking server."""
    return {
        "EVOSEARCH_ADDRESS": dashboard(state),
        "EVOSEARCH_RUNS": str(places.folder / "runs"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(places.token),
        # Despite its name: without it, Ray takes 127.0.0.1 for the machine's own address, on which nothing listens
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PGPASSFILE": str(postgres.passfile),
        "MLFLOW_TRACKING_URI": tracking(state),
        "MLFLOW_TRACKING_USERNAME": ACCOUNT,
        "MLFLOW_TRACKING_PASSWORD": secret(places.secrets / "mlflow-evosearch"),
    }


def of_nodes(places: Places, state: State, postgres: Postgres) -> dict[str, str]:
    """The whole environment of a Ray node: jobs and workers have it from there."""
    ours = {
        "EVOSEARCH_PYTHON": sys.executable,
        "EVOSEARCH_CACHE": str(default_cache()),
        "EVOSEARCH_DATA": str(data_folder()),
        "EVOSEARCH_RAY_ADDRESS": f"{HOST}:{state.ports['ray']}",  # of jobs: Ray's own guess may be another cluster
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAY_JOB_START_TIMEOUT_SECONDS": "604800",  # a search may wait for its turn for a week
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # in which one that is stopped records what it has
    }
    clients = of_clients(places, state, postgres)
    del clients["EVOSEARCH_ADDRESS"]
    return kept(os.environ) | TELEMETRY_OFF | clients | ours


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment is passed on to the parts of a cluster."""
    return {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}


def write(places: Places, state: State, postgres: Postgres) -> None:
    """Write FOLDER/environment: `. FOLDER/environment` in a shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in of_clients(places, state, postgres).items()]
    lines.append("unset RAY_ADDRESS")
    write_private(places.environment, "\n".join(lines) + "\n")
