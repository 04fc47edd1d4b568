"""The commands as functions: the same services as the command line, with typed results and errors.

Every function imports what it needs when it is called. Wrong input raises `evosearch.InputError`, with the file and the
key; anything else that goes wrong raises `evosearch.EvosearchError`. Nothing is printed unless a `watcher` is given:
an object with the methods of `evosearch.Watcher`, which receives progress and notes. While a function runs, the process
has the umask 077, or $EVOSEARCH_UMASK.
"""

from evosearch.api.models import analyze, diff, load_recipe, merge, score
from evosearch.api.searches import check, export, init, leaderboard, load_spec, push, report, run, verify
from evosearch.environment import telemetry_off

telemetry_off()  # before the libraries that read these variables are imported

__all__ = [
    "analyze",
    "check",
    "diff",
    "export",
    "init",
    "leaderboard",
    "load_recipe",
    "load_spec",
    "merge",
    "push",
    "report",
    "run",
    "score",
    "verify",
]
