"""Peak of the anonymous memory of one merge to disk: `python -m benchmarks._merge.peak METHOD MODEL...`."""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch


def anonymous() -> int:
    """Return the bytes of this process's resident memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(found.split()[1]) * 1024


class Watch:
    """Samples anonymous memory every few milliseconds."""

    def __init__(self) -> None:
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, anonymous())
            time.sleep(0.005)


def main() -> None:
    """Merge; print the peak before and during the merge, in bytes."""
    from benchmarks._merge.models import layers_of
    from benchmarks._merge.recipes import recipe
    from evosearch.checkpoints.reader import Checkpoint
    from evosearch.materialize.on_disk import write_checkpoint

    torch.set_num_threads(2)
    method, base, *parents = sys.argv[1:]
    checkpoints = {name: Checkpoint.open(Path(name)) for name in (base, *parents)}
    wanted = recipe(method, base, parents, layers_of(Path(base)), 0)
    start, watch = anonymous(), Watch()
    with tempfile.TemporaryDirectory(dir=Path(base).parent) as folder:
        report = write_checkpoint(wanted, checkpoints, Path(folder) / "out", base)
    print(json.dumps({"start": start, "peak": watch.stop(), "seconds": report.seconds["total"], "bytes": report.bytes}))


if __name__ == "__main__":
    main()
