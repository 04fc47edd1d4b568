"""Documents of the sentence tasks, read from the JSON lines in `data/` that `examples.smollm2.prepare` writes.

lm-eval imports this file by its path, so it depends only on `datasets` and works from any working directory.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

DATA = Path(__file__).resolve().parent / "data"
SPLITS = {"test": "heldout", "fewshot": "fewshot"}  # lm-eval's split → the file's
NEXT = "Write the data files with `python -m examples.smollm2.prepare`, see examples/README.md."


def load(sentence_set: str, **_metadata: Any) -> dict[str, Dataset]:
    """Load the splits of one set in file order, with documents `{"text": str, "label": int}`.

    Args:
        sentence_set: sst2, subj or trec, from the task's `dataset_kwargs`.
        _metadata: Run metadata from lm-eval, ignored.

    Raises:
        FileNotFoundError: A data file is missing.
        ValueError: A line is not a document; the message has file and line.
    """
    # Built in memory instead of by load_dataset("json"), which keeps a cache and may use the network.
    return {split: Dataset.from_list(_read(DATA / f"{sentence_set}_{part}.jsonl")) for split, part in SPLITS.items()}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. {NEXT}")
    with path.open(encoding="utf-8") as file:
        documents = [_document(line, f"{path}: line {number}") for number, line in enumerate(file, start=1)]
    if not documents:
        raise ValueError(f"{path}: has no documents. {NEXT}")
    return documents


def _document(line: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
        text, label = document["text"], document["label"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{where}: not {{"text": …, "label": …}}. {NEXT}') from None
    if not isinstance(text, str) or type(label) is not int:
        raise ValueError(f"{where}: text must be a string and label an integer. {NEXT}")
    return {"text": text, "label": label}
