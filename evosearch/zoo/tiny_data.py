"""The four tiny tasks: documents, right answers and the split between training and evaluation. Imports no torch.

| task | document | right answer | metric |
|---|---|---|---|
| reverse | `Rabcde=` | `edcba` | exact match of the text generated up to `.` |
| sort | `Sdbeac=` | `abcde` | exact match |
| deal | `Dabcde=` | `acebd`: every second letter, then the rest | exact match |
| median | `Mdbeac=` | `c`: the middle one of five letters in alphabetical order | choice among the five, chance 0.2 |

The hash of a string decides whether it is used for training or for evaluation, so no model was trained on an
evaluation string of any task.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

LETTERS = "abcdefghijklmnopqrst"
LENGTH = 5  # letters per string
STOP = "."  # ends every answer
POOL = 2000  # evaluation documents per task
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        tag: First letter of each document.
        answer: Maps a string to the right answer.
        distinct: Whether the letters of a string must differ.
    """

    tag: str
    answer: Callable[[str], str]
    distinct: bool = False


@dataclass(frozen=True)
class Document:
    """One question and its right answer."""

    task: str
    text: str  # LENGTH letters
    answer: str

    @property
    def context(self) -> str:
        """The prompt: tag, string, `=`."""
        return f"{TASKS[self.task].tag}{self.text}="


TASKS: dict[str, Task] = {
    "reverse": Task("R", lambda text: text[::-1]),
    "sort": Task("S", lambda text: "".join(sorted(text))),
    "deal": Task("D", lambda text: text[::2] + text[1::2]),
    "median": Task("M", lambda text: sorted(text)[len(text) // 2], distinct=True),
}
VOCABULARY = (*SPECIALS, *LETTERS, *(task.tag for task in TASKS.values()), "=", STOP)


def held_out(text: str) -> bool:
    """Return whether a string is reserved for evaluation: one in eight, by its sha256."""
    return sha256(text.encode()).digest()[0] < 32


def draw(task: str, rng: random.Random, evaluation: bool = False) -> Document:
    """Draw a random training or evaluation document of a task."""
    kind = TASKS[task]
    while True:
        text = "".join(rng.sample(LETTERS, LENGTH) if kind.distinct else rng.choices(LETTERS, k=LENGTH))
        if held_out(text) == evaluation:
            return Document(task, text, kind.answer(text))


def evaluation_documents(task: str, count: int = POOL) -> list[Document]:
    """Return the first `count` documents of a task's evaluation pool: distinct, and the same on every call."""
    return list(_distinct(task, count))


def rows(task: str, count: int = POOL) -> list[dict[str, object]]:
    """Return the evaluation pool as lm-eval reads it: context, answer, choices, gold (index into choices)."""
    return [
        {
            "context": document.context,
            "answer": document.answer,
            "choices": list(document.text),  # only for the multiple-choice task
            "gold": document.text.find(document.answer[0]),
        }
        for document in evaluation_documents(task, count)
    ]


def _distinct(task: str, count: int) -> Iterator[Document]:
    rng = random.Random(f"evosearch tiny {task}")  # noqa: S311 - a seeded stream, not a secret
    seen: set[str] = set()
    while len(seen) < count:
        document = draw(task, rng, evaluation=True)
        if document.text not in seen:
            seen.add(document.text)
            yield document
