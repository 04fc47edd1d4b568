"""Output of benchmarks: one JSON document on standard output, tables on standard error."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def publish(found: dict[str, Any], *tables: str) -> None:
    """Print the figures as one JSON document with date, command and machine, then the tables."""
    heading = about()
    print(json.dumps(heading | found))
    where = f"{heading['machine']}, {heading['cpus']} CPUs, Python {heading['python']}"
    print(f"\n{heading['date']}: `{heading['command']}` ({where})", *tables, sep="\n\n", file=sys.stderr)


def about() -> dict[str, Any]:
    """Date, command and machine of this run."""
    program = f"python -m benchmarks.{Path(sys.argv[0]).stem}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join([program, *map(shlex.quote, sys.argv[1:])]),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
