"""End-to-end test of a development cluster: a submitted search loses a node and must still be recorded completely.

    .venv/bin/python -m benchmarks.cluster_proof [--keep]

Starts its own cluster (PostgreSQL, MLflow with accounts, a Ray head and two nodes, on loopback), checks that every
service rejects requests without credentials, submits a search of the built-in models, kills a node during a job, and
compares the ledger with MLflow's runs and model registry through the REST API. Prints each stage with its seconds. Exit
code 0 if it passed, 1 if it failed, 2 if a requirement is missing, 130 if interrupted. Needs `./scripts/setup server`
and PostgreSQL; takes a few minutes on two cores.
"""

import argparse
import sys

from evosearch.environment import telemetry_off
from evosearch.errors import EvosearchError, InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the proof; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.cluster_proof", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep the cluster's folder and print its path")
    options = parser.parse_args(arguments)
    telemetry_off()
    from benchmarks._cluster_proof.proof import prove

    try:
        return int(not prove(options.keep, _say))
    except InputError as error:
        print(f"cluster_proof: {error}", file=sys.stderr)
        return 2
    except (EvosearchError, OSError) as error:
        print(f"cluster_proof: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster_proof: interrupted", file=sys.stderr)
        return 130


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
