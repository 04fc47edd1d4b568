"""The three tasks, and the sentences they are trained and measured on: JSON lines of text and label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import SuiteError
from examples.smollm2.folders import ROOT, progress, write_text

SUITE_DATA = ROOT / "evals" / "sentences" / "data"
PARTS = ("heldout", "fewshot")  # what the suite reads; training reads TASK_train.jsonl


@dataclass(frozen=True)
class Task:
    """One classification, put as `evals/sentences/NAME.yaml` puts it."""

    prompt: str
    labels: tuple[str, ...]  # in the order of a document's label; each follows the prompt with its leading space


TASKS = {
    "sst2": Task("Review: {text}\nSentiment:", (" negative", " positive")),
    "subj": Task("Sentence: {text}\nType:", (" subjective", " objective")),
    "trec": Task(
        "Question: {text}\nAsks for:",
        (" description", " entity", " abbreviation", " person", " location", " number"),
    ),
}


@dataclass(frozen=True)
class Document:
    text: str
    label: int


def read_documents(data: Path) -> dict[str, str]:
    """File name → its text: the files of the suite, every line checked by `read_lines`."""
    if not data.is_dir():
        raise SuiteError(f"--data {data}", "no such folder", "A folder with TASK_heldout.jsonl and TASK_fewshot.jsonl")
    files = {}
    for task in TASKS:
        for part in PARTS:
            path = data / f"{task}_{part}.jsonl"
            read_lines(path, task)
            files[path.name] = path.read_text(encoding="utf-8")
    return files


def read_lines(path: Path, task: str) -> list[Document]:
    """The documents of one file, every line checked to be `{"text": str, "label": int}` with a label the task has.

    Raises:
        SuiteError: the file is missing or not UTF-8, or a line is no document; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(str(path), "missing", "JSON lines of text and label") from None
    except UnicodeDecodeError:
        raise SuiteError(str(path), "not UTF-8 text", "JSON lines of text and label") from None
    labels = len(TASKS[task].labels)
    lines = enumerate(text.removesuffix("\n").split("\n"), start=1)
    return [_document(line, labels, f"{path}: line {number}") for number, line in lines]


def _document(line: str, labels: int, where: str) -> Document:
    allowed = f'{{"text": a string, "label": 0 to {labels - 1}}}, one a line'
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise SuiteError(where, "no document", allowed)
    label = found.get("label")
    if type(label) is not int or not 0 <= label < labels:
        raise SuiteError(where, f"label {label!r}", allowed)
    return Document(found["text"], label)


def as_lines(documents: Sequence[Document]) -> str:
    return "".join(json.dumps(vars(document), ensure_ascii=False) + "\n" for document in documents)


def write_documents(documents: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Files by name into a folder, each whole or not at all; returns file name → number of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        write_text(folder / name, text)
    counts = {name: text.removesuffix("\n").count("\n") + 1 for name, text in documents.items()}
    progress(f"documents: {', '.join(f'{count} in {name}' for name, count in counts.items())}")
    return counts
