"""Sizes of the rows in Parquet and Arrow files, decoded in a child process with limits on memory and time.

A Parquet footer states a size that its writer chose, and even a true one is that of encoded values: a column of one
repeated text takes a thousand bytes in the file, five thousand in the footer's sum, and a gigabyte in memory. So the
rows are decoded and counted.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MEMORY = 2**30  # bytes of the child, in addition to the rows that are allowed
CPU_S = 300  # of all files; a gigabyte takes some seconds
BATCH = 1024  # rows decoded at a time
PACKAGES = str(Path(__file__).resolve().parents[3])  # the folder from which this process imports evosearch


def row_bytes(files: Sequence[Path], most: int, reader: str) -> list[int]:
    """Return the bytes of the rows of each file, as datasets writes them to its cache.

    Args:
        files: The files. Of one that is damaged, the rows before the damage count; its reader reports it.
        most: Counting ends with the file whose rows exceed this number together with those before it; later files
            are missing in the result.
        reader: `parquet` or `arrow`.

    Returns:
        The sizes. The last one is `most` + 1 if decoding needed too much memory or time.
    """
    command = [sys.executable, "-P", "-m", __name__, str(most), reader]
    paths = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))
    # One malloc arena and one thread: the limit on memory counts the address space that each of them reserves
    settings = {"PYTHONPATH": paths, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    names = json.dumps([str(file) for file in files])
    made = subprocess.run(  # noqa: S603
        command, input=names, capture_output=True, text=True, env=os.environ | settings, check=False
    )
    sizes = [int(line) for line in made.stdout.splitlines()]
    if made.returncode != 0:
        sizes.append(most + 1)
    return sizes


def _main() -> None:
    """Print the size of each file, one a line; the process ends at the limits."""
    import pyarrow as pa
    import pyarrow.parquet  # before memory is limited

    most, batches = int(sys.argv[1]), {"parquet": _parquet, "arrow": _arrow}[sys.argv[2]]
    files = json.load(sys.stdin)
    _limit(most)
    total = 0
    for file in files:
        size = 0
        try:
            for batch in batches(file):
                size += sum(_plain(column) for column in batch.columns)
                if total + size > most:
                    break
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError) as exc:
            if "alloc" in str(exc) or "out of memory" in str(exc).lower():  # no MemoryError in all places
                raise
        sys.stdout.write(f"{size}\n")
        sys.stdout.flush()
        total += size
        if total > most:
            return


def _parquet(file: str) -> Iterator[Any]:
    """Yield record batches of a Parquet file."""
    from pyarrow import parquet

    with open(file, "rb") as opened:
        yield from parquet.ParquetFile(opened, pre_buffer=False).iter_batches(batch_size=BATCH, use_threads=False)


def _arrow(file: str) -> Iterator[Any]:
    """Yield record batches of an Arrow stream or file, tried in the order in which datasets does."""
    import pyarrow as pa

    with open(file, "rb") as opened:
        try:
            batches = pa.ipc.open_stream(opened)
        except (OSError, pa.ArrowInvalid):
            reader = pa.ipc.open_file(opened)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        yield from batches


def _plain(array: Any) -> int:
    """Return the bytes of an array without dictionaries, runs and views, as datasets stores it."""
    import pyarrow as pa
    from pyarrow import compute

    kind = pa.types
    if kind.is_dictionary(array.type):
        return _plain(array.dictionary_decode())
    if kind.is_run_end_encoded(array.type):
        return _plain(compute.run_end_decode(array))
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if kind.is_string_view(array.type) or kind.is_binary_view(array.type):
        return int(array.cast(pa.large_binary()).nbytes)
    if kind.is_struct(array.type):
        return sum(_plain(field) for field in array.flatten())
    if kind.is_nested(array.type) and hasattr(array, "flatten"):
        return 8 * len(array) + _plain(array.flatten())
    return int(array.nbytes)


def _limit(most: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    with contextlib.suppress(OSError):  # no /proc: only time is limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY + most
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _main()
