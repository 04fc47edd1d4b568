"""The three classification tasks and their documents: JSON lines with text and label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import SuiteError
from examples.smollm2.folders import ROOT, progress, write_text

SUITE_DATA = ROOT / "evals" / "sentences" / "data"
SUITE_FILES = ("heldout", "fewshot")  # read by the suite as TASK_heldout.jsonl; training reads TASK_train.jsonl


@dataclass(frozen=True)
class Task:
    """One classification task, worded as in `evals/sentences/NAME.yaml`."""

    prompt: str
    labels: tuple[str, ...]  # by label index, with the space that separates them from the prompt

    def pair(self, document: "Document") -> tuple[str, str]:
        """Prompt and right label of a document."""
        return self.prompt.format(text=document.text), self.labels[document.label]


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
    """A sentence with the index of its label."""

    text: str
    label: int


def read_documents(data: Path) -> dict[str, str]:
    """Read and check the files of the suite; return file name → content.

    Raises:
        SuiteError: The folder or a file is missing, or a line is invalid.
    """
    if not data.is_dir():
        raise SuiteError(
            f"--data {data}", "folder not found", "A folder with TASK_heldout.jsonl and TASK_fewshot.jsonl"
        )
    files = {}
    for task in TASKS:
        for kind in SUITE_FILES:
            path = data / f"{task}_{kind}.jsonl"
            read_lines(path, task)
            files[path.name] = path.read_text(encoding="utf-8")
    return files


def read_lines(path: Path, task: str) -> list[Document]:
    """Read one file of lines `{"text": str, "label": int}`, where the label is an index into the task's labels.

    Raises:
        SuiteError: The file is missing or not UTF-8, or a line is invalid; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(str(path), "file not found", "JSON lines of text and label") from None
    except UnicodeDecodeError:
        raise SuiteError(str(path), "not UTF-8 text", "JSON lines of text and label") from None
    labels = len(TASKS[task].labels)
    lines = enumerate(text.removesuffix("\n").split("\n"), start=1)
    return [_document(line, labels, f"{path}: line {number}") for number, line in lines]


def _document(line: str, labels: int, where: str) -> Document:
    allowed = f'{{"text": string, "label": 0 to {labels - 1}}} per line'
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise SuiteError(where, "not a document", allowed)
    label = found.get("label")
    if type(label) is not int or not 0 <= label < labels:
        raise SuiteError(where, f"label {label!r}", allowed)
    return Document(found["text"], label)


def as_lines(documents: Sequence[Document]) -> str:
    """Serialize documents as JSON lines."""
    return "".join(json.dumps(vars(document), ensure_ascii=False) + "\n" for document in documents)


def write_documents(documents: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Write files into a folder, each atomically; return file name → number of documents.

    Args:
        documents: File name → content.
        folder: Target folder, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        write_text(folder / name, text)
    counts = {name: text.removesuffix("\n").count("\n") + 1 for name, text in documents.items()}
    progress(f"documents: {', '.join(f'{count} in {name}' for name, count in counts.items())}")
    return counts
