"""One gradient step in a process of its own, with the peak of its memory.

    python -m benchmarks._gradient_cost.step FOLDER DOCUMENTS

Peaks are those of RssAnon + RssShmem in /proc/self/status, read every 10 ms. They leave out the mapped files of the
parents, whose pages the system can drop at any time.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KEYS = ("RssAnon:", "RssShmem:")


@dataclass(frozen=True)
class Memory:
    """Figures of one gradient step; memory in GiB without mapped files, times in seconds."""

    parameters: int
    coefficients: int
    items: int
    tokens: int
    start: float  # peak while the worker starts
    resident: float  # after that
    score: float  # peak of a scoring job
    gradient: float  # peak of a gradient job
    score_seconds: float
    gradient_seconds: float


def resident() -> float:
    """Return the memory of this process in GiB, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(KEYS)) / (1 << 20)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Yield a list that has the peak at the end."""
    found, stop = [resident()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            found[0] = max(found[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found[0] = max(found[0], resident())


def main(folder: Path, documents: int) -> Memory:
    """Start a worker on the models in a folder, run a scoring job and a gradient job, and return their figures."""
    from benchmarks._gradient_cost.case import Case

    hole = {"low": 0.0, "high": 1.5, "per": "group", "groups": 4, "ends": "shared"}
    parents = [str(folder / name) for name in ("1", "2")]
    with peak() as start:
        case = Case(str(folder / "base"), parents, folder / "suite" / "suite.yaml", folder, [hole], "bfloat16")
    after, batch = resident(), case.batch("test", documents)
    peaks: list[float] = []
    seconds: list[float] = []
    card: Any = None
    for number, gradient in enumerate((False, True)):
        began = time.perf_counter()
        with peak() as one:
            card = case.run(batch, 0, 0.1 * number, gradient)[1]
        seconds.append(time.perf_counter() - began)
        peaks.append(one[0])
    sizes = (case.parameters, len(case.spaces[0].dimensions), len(batch), card.tokens.forwarded)
    return Memory(*sizes, start[0], after, *peaks, *seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), int(sys.argv[2])))))
