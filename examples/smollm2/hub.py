"""The three data sets from the Hugging Face hub, split into disjoint held-out, few-shot and training documents."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.errors import EvosearchError
from examples.smollm2.documents import Document, as_lines
from examples.smollm2.folders import progress

SIZES = {"heldout": 1600, "fewshot": 64, "train": 3000}  # number of documents, assigned in this order


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub. Its splits are pooled and split again, because their sizes differ from `SIZES`."""

    path: str  # on the hub, or a local folder
    text: str  # column
    label: str  # column
    names: Mapping[str, int]  # lower-case value of the label column → index into the task's labels


SETS = {
    # Only complete sentences (Socher et al. 2013). GLUE's sst2 also has phrases of them, which would leak held-out
    # sentences into training.
    "sst2": HubSet("SetFit/sst2", "text", "label_text", {"negative": 0, "positive": 1}),
    "subj": HubSet("SetFit/subj", "text", "label_text", {"subjective": 0, "objective": 1}),
    "trec": HubSet(
        "SetFit/TREC-QC",
        "text",
        "label_coarse_original",
        {"desc": 0, "enty": 1, "abbr": 2, "hum": 3, "loc": 4, "num": 5},
    ),
}


def fetch(task: str, sizes: Mapping[str, int] = SIZES) -> dict[str, str]:
    """Download one task; return `TASK_heldout.jsonl`, `TASK_fewshot.jsonl` and `TASK_train.jsonl` → content.

    Raises:
        EvosearchError: The hub cannot be reached, or the data set has changed.
    """
    progress(f"{task}: {SETS[task].path} from the Hugging Face hub")
    documents = distinct(_rows(SETS[task]))
    if len(documents) < sum(sizes.values()):
        raise EvosearchError(_message(SETS[task], f"{len(documents)} distinct texts, {sum(sizes.values())} needed"))
    files, at = {}, 0
    for kind, size in sizes.items():
        files[f"{task}_{kind}.jsonl"] = as_lines(documents[at : at + size])
        at += size
    return files


def distinct(documents: Iterable[Document]) -> list[Document]:
    """Deduplicate texts, ignoring case and whitespace, and sort them by hash.

    The result is independent of the order of the rows. Texts with contradictory labels are dropped.
    """
    found: dict[str, Document | None] = {}
    for document in documents:
        digest = hashlib.sha256(" ".join(document.text.split()).casefold().encode()).hexdigest()
        earlier = found.setdefault(digest, document)
        if earlier is not None and earlier.label != document.label:
            found[digest] = None
    return [document for _, document in sorted(found.items()) if document is not None]


def _rows(source: HubSet) -> Iterable[Document]:
    for number, row in enumerate(_download(source)):
        try:
            name, text = row[source.label], row[source.text]
        except KeyError as error:
            what = f"column {error} not found; columns: {', '.join(map(repr, row))}"
            raise EvosearchError(_message(source, what)) from None
        label = source.names.get(str(name).casefold())
        if label is None or not isinstance(text, str):
            what = f"row {number}: unknown label {name!r}; known labels: {', '.join(source.names)}"
            raise EvosearchError(_message(source, what))
        yield Document(text.strip(), label)


def _download(source: HubSet) -> Iterable[dict[str, Any]]:
    """Rows of all splits, sorted by the splits' names."""
    import datasets

    try:
        splits = datasets.load_dataset(source.path)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # OSError: no network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvosearchError(_message(source, reason)) from None
    for name in sorted(splits):
        yield from splits[name]


def _message(source: HubSet, what: str) -> str:
    return f"data set {source.path}: {what.rstrip('.')}. To use local files instead, give --data DIR."
