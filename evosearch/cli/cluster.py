#!/usr/bin/env python3
"""A cluster on this machine: PostgreSQL, an MLflow server with accounts, a Ray head and worker nodes, all on loopback.

    scripts/cluster up [--nodes 2] [--cpus-per-node K] [--gpus-per-node K]
    scripts/cluster status [--json]
    scripts/cluster down [--remove]
    scripts/cluster test [--keep]

Everything lies in one folder (`--folder`, default runs/cluster), with random passwords that only you can read. `up`
starts what does not run. Then `. runs/cluster/environment` in a shell, and `evosearch submit SPEC`.
`test` makes a cluster of its own, submits a search, kills a node of workers in the middle, and checks what the ledger
and MLflow's REST API say in the end. Exit codes: 0 well, 1 not, 2 the input is wrong, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"

try:
    import psycopg

    from evosearch.devcluster.cluster import Cluster, PartStatus
    from evosearch.devcluster.environment import tracking
    from evosearch.environment import telemetry_off
    from evosearch.errors import EvosearchError, InputError
except ModuleNotFoundError as error:
    if PYTHON.is_file() and Path(sys.prefix) != PYTHON.parents[1]:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    print(f"{sys.executable} has no {error.name}. Run ./scripts/setup server first", file=sys.stderr)
    sys.exit(2)

FOLDER = Path("runs/cluster")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    telemetry_off()
    try:
        return int(options.run(options))
    except InputError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except (EvosearchError, OSError, psycopg.Error) as error:
        print(f"cluster: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; `cluster down` stops what runs", file=sys.stderr)
        return 130


def up(options: argparse.Namespace) -> int:
    cluster = Cluster(options.folder, _say)
    cluster.up(options.nodes, options.cpus_per_node, options.gpus_per_node)
    print(f"""ready. For a shell:
    . {os.path.relpath(cluster.places.environment)}
For a spec:
    ledger: {cluster.ledger()}
    tracking: {{uri: "{tracking(cluster.state)}"}}
    workers: {{count: auto, threads: 1}}
Then: evosearch submit SPEC""")
    return 0


def status(options: argparse.Namespace) -> int:
    parts = Cluster(options.folder).status()
    if options.json:
        print(
            json.dumps({"folder": str(options.folder.resolve()), "parts": [asdict(part) for part in parts]}, indent=1)
        )
    else:
        print("\n".join(_line(part) for part in parts))
    return int(any(part.lacks for part in parts))


def down(options: argparse.Namespace) -> int:
    Cluster(options.folder, _say).down(options.remove)
    return 0


def test(options: argparse.Namespace) -> int:
    from benchmarks._cluster_proof.trial import trial

    return int(not trial(options.keep, _say))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = {name: commands.add_parser(name, help=text) for name, text in HELP.items()}
    for name, run in {"up": up, "status": status, "down": down}.items():
        made[name].set_defaults(run=run)
        made[name].add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="%(default)s")
    made["up"].add_argument("--nodes", type=_positive, help="of workers; default: as many as before, or 2")
    made["up"].add_argument("--cpus-per-node", type=_positive, metavar="K", help="default: an even share")
    made["up"].add_argument(
        "--gpus-per-node", type=_none_or_more, metavar="K", help="of each node alone; default: none"
    )
    made["status"].add_argument("--json", action="store_true", help="one JSON document on standard output")
    made["down"].add_argument("--remove", action="store_true", help="delete what `up` made, databases and all")
    made["test"].set_defaults(run=test)
    made["test"].add_argument("--keep", action="store_true", help="leave its cluster's folder, and say where it is")
    return parser


HELP = {
    "up": "start what does not run",
    "status": "what runs, where, since when, and what it lacks",
    "down": "stop all of it",
    "test": "a search on a cluster of its own, which loses a node",
}


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {number}; 1 or more")
    return number


def _none_or_more(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"got {number}; 0 or more")
    return number


def _line(part: PartStatus) -> str:
    since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(part.since)) if part.since else ""
    return f"{part.name:<10} {part.address:<24} {since:<26} {part.lacks or 'well'}"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
