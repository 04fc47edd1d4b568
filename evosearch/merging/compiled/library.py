"""The compiled kernels: this folder's C++, built once per machine by the compiler and kept in the node's cache.

Without a compiler the eager functions run, which have the same results (see `merges.cpp`); a line on standard error
says so once. `$CXX` names another compiler, and `EVOSEARCH_KERNELS=eager` does without.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from evosearch.checkpoints.cache.layout import COMPILED
from evosearch.checkpoints.references import default_cache

SOURCES = sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in (".cpp", ".h"))
FLAGS = (
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    "-ffp-contract=off",  # only what torch fuses may be fused
    *("-fno-math-errno", "-fno-trapping-math"),  # change no result, and let loops use vectors
)
TIMEOUT_S = 300


class Array(ctypes.Structure):
    """A tensor: pointer and type."""

    _fields_ = (("data", ctypes.c_void_p), ("type", ctypes.c_int64))


class Trim(ctypes.Structure):
    """`magnitudes.Trim`."""

    _fields_ = (("below", ctypes.c_float), ("cut", ctypes.c_float), ("end", ctypes.c_int64))


class Change(ctypes.Structure):
    """What is kept of one task vector."""

    _fields_ = (
        ("flags", ctypes.c_int32),
        ("outer", Trim),
        ("inner", Trim),
        ("key0", ctypes.c_uint64),
        ("key1", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("limits", ctypes.c_void_p),
        ("divisors", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
    )


class Plan(ctypes.Structure):
    """One merge."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("mode", "parents", "signs", "normalize", "has_zero", "select")),
        *((name, ctypes.c_int32) for name in ("out_type", "round_type")),
        *((name, ctypes.c_float) for name in ("lam", "zero", "epsilon")),
        ("selection", Trim),
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("base", "models", "changes", "factors", "weights", "out")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None without a working compiler; the first call may compile them."""
    if os.environ.get("EVOSEARCH_KERNELS") == "eager":
        return None
    try:
        return _declared(ctypes.CDLL(str(_built())))
    except (OSError, ValueError, subprocess.SubprocessError, AttributeError) as error:  # ValueError: quotes in $CXX
        reason = getattr(error, "stderr", None) or error
        line = str(reason).strip().partition("\n")[0]
        sys.stderr.write(f"evosearch: merges run without compiled kernels, which takes longer: {line}\n")
        return None


def _built() -> Path:
    """Return the library's file, compiled if the cache has none for this source, compiler and CPU.

    Raises:
        OSError: There is no compiler, or the file cannot be written.
        subprocess.SubprocessError: The compiler fails.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    # The user's own compiler, or $CXX, as any build uses it
    version = subprocess.run(  # noqa: S603
        [*compiler, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    described = "\0".join([*(file.read_text() for file in SOURCES), *FLAGS, version.stdout, _cpu()])
    folder = default_cache() / COMPILED
    file = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.so"
    if _trusted(file):
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True) as draft:
        made = Path(draft) / file.name
        command = [*compiler, *FLAGS, "-o", str(made), *(str(file) for file in SOURCES if file.suffix == ".cpp")]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)  # noqa: S603
        made.chmod(0o700)
        made.replace(file)
    return file


def _trusted(file: Path) -> bool:
    """Return whether the file exists and only this user can have written it: its code will run."""
    try:
        found = file.lstat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & others


def _cpu() -> str:
    """Return what `-march=native` depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model", "cpu family"))}))


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the arguments; an unknown function is an AttributeError."""
    pointer, number, whole = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    source = [pointer, pointer, number, whole]  # base, models, how many, size
    for name, arguments in {
        "merge": [pointer, pointer, number],
        "histogram": [*source, pointer, number],
        "codes": [*source, pointer, pointer, number],
        "threshold": [*source, pointer, ctypes.c_uint8, ctypes.c_uint32, whole, pointer, number],
        "upper_bytes": [ctypes.c_uint64, ctypes.c_uint64, whole, pointer, number],
        "places": [pointer, pointer, whole, whole, number, pointer, number],
        "products": [*source, number, pointer, number],
        "sizes": [pointer, pointer, number],
    }.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    found.threshold.restype = whole
    return found
