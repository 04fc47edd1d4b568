"""Documents of the eight tasks, read from the JSON lines in `data/` that `examples.eight_experts.train` writes.

lm-eval imports this file by its path, so it depends only on `datasets` and works from any working directory.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

DATA = Path(__file__).resolve().parent / "data"
NEXT = "Write the data files with `python -m examples.eight_experts.prepare`, see examples/README.md."


def load(eight_task: str, **_metadata: Any) -> dict[str, Dataset]:
    """Load the held-out documents of one task in file order, `{"question": str, "answer": str}`.

    Args:
        eight_task: Name of the task, from its `dataset_kwargs`.
        _metadata: Run metadata from lm-eval, ignored.

    Raises:
        FileNotFoundError: The data file is missing.
        ValueError: A line is not a document; the message has file and line.
    """
    # Built in memory instead of by load_dataset("json"), which keeps a cache and may use the network.
    return {"test": Dataset.from_list(_read(DATA / f"{eight_task}_heldout.jsonl"))}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. {NEXT}")
    with path.open(encoding="utf-8") as file:
        documents = [_document(line, f"{path}: line {number}") for number, line in enumerate(file, start=1)]
    if not documents:
        raise ValueError(f"{path}: has no documents. {NEXT}")
    return documents


def _document(line: str, where: str) -> dict[str, str]:
    try:
        document = json.loads(line)
        question, answer = document["question"], document["answer"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{where}: not {{"question": …, "answer": …}}. {NEXT}') from None
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"{where}: question and answer must be strings. {NEXT}")
    return {"question": question, "answer": answer}
