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
    """The splits of one set, `{"text": str, "label": int}` a document, in file order.

    Args:
        sentence_set: sst2, subj or trec; a task's `dataset_kwargs` name it.
        _metadata: what lm-eval passes of the run (model arguments, version); it changes no document.

    Raises:
        FileNotFoundError: a data file is missing.
        ValueError: a line is no document; the message names file and line.
    """
    # Built in memory rather than with load_dataset("json"): no cache to go stale, nothing looked up on a network.
    return {split: Dataset.from_list(_read(DATA / f"{sentence_set}_{part}.jsonl")) for split, part in SPLITS.items()}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. {NEXT}")
    with path.open(encoding="utf-8") as file:
        documents = [_document(line, f"{path}: line {number}") for number, line in enumerate(file, start=1)]
    if not documents:
        raise ValueError(f"{path}: holds no document. {NEXT}")
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
