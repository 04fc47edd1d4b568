"""Shell commands of the jobs on a cluster: `evosearch check` and `evosearch run`."""

import shlex
from dataclasses import dataclass

from evosearch.execution.ray_jobs import CHECK, RUN, SETTINGS

# `exec` replaces the shell, so that signals reach the program. On a machine with several clusters, Ray may pass the
# address of another cluster to a job; EVOSEARCH_RAY_ADDRESS in the head's environment overrides it.
PROGRAM = (
    'export RAY_ADDRESS="${EVOSEARCH_RAY_ADDRESS:-$RAY_ADDRESS}"; '
    'exec "${EVOSEARCH_PYTHON:-python}" -m evosearch.cli.main'
)
RUNS = "EVOSEARCH_RUNS"


@dataclass(frozen=True)
class Options:
    """Command-line options of the jobs, see `evosearch run`."""

    continue_from_best: bool = False
    allow_pickle: bool = False
    unverified: bool = False
    allow_unrelated: bool = False

    def of(self, kind: str) -> str:
        """Return the command-line options of a kind of job."""
        given = {
            "--continue-from-best": self.continue_from_best and kind == RUN,
            "--allow-pickle": self.allow_pickle,
            "--unverified": self.unverified and kind == RUN,
            "--allow-unrelated": self.allow_unrelated,
        }
        return " ".join(option for option, wanted in given.items() if wanted)


def check_command(spec: str, options: Options) -> str:
    """Return the command that prints the head's settings and then checks a spec."""
    settings = " ".join(f"{name}=${{{name}:-}}" for name in SETTINGS)
    command = f"{PROGRAM} check {shlex.quote(spec)} --json {options.of(CHECK)}".rstrip()
    return f'echo "{settings}"; echo "{RUNS}=${{{RUNS}:-}}"; {command}'


def run_command(spec: str, options: Options) -> str:
    """Return the command that runs a search."""
    return f"{PROGRAM} run {shlex.quote(spec)} --progress json {options.of(RUN)}".rstrip()
