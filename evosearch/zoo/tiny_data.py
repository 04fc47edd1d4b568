"""The four tiny tasks: what is asked, what is right, and which strings are kept for evaluation. No torch here.

| task | document | asked for | how it is measured |
|---|---|---|---|
| reverse | `Rabcde=` | `edcba` | exact match of what is generated up to `.` |
| sort | `Sdbeac=` | `abcde` | the same |
| deal | `Dabcde=` | `acebd`: every second letter, then the rest | the same |
| median | `Mdbeac=` | `c`: the middle one of five letters in alphabetical order | choice among the five, chance 0.2 |

A string belongs to evaluation or to training by its own hash, so no evaluation string was ever trained on, in any
task, by any model.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

LETTERS = "abcdefghijklmnopqrst"
LENGTH = 5  # letters a string; every document has the same length, so batches need no padding
STOP = "."  # ends every answer
POOL = 2000  # evaluation documents a task
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        tag: the letter a document begins with.
        answer: string -> right answer.
        distinct: whether the letters of a string must differ.
    """

    tag: str
    answer: Callable[[str], str]
    distinct: bool = False


@dataclass(frozen=True)
class Document:
    """One question: the string asked about and its right answer."""

    task: str
    text: str  # LENGTH letters
    answer: str

    @property
    def context(self) -> str:
        """What the model is given: tag, string, `=`."""
        return f"{TASKS[self.task].tag}{self.text}="


TASKS: dict[str, Task] = {
    "reverse": Task("R", lambda text: text[::-1]),
    "sort": Task("S", lambda text: "".join(sorted(text))),
    "deal": Task("D", lambda text: text[::2] + text[1::2]),
    "median": Task("M", lambda text: sorted(text)[len(text) // 2], distinct=True),
}
VOCABULARY = (*SPECIALS, *LETTERS, *(task.tag for task in TASKS.values()), "=", STOP)


def held_out(text: str) -> bool:
    """Whether a string is kept for evaluation: one in eight, by its sha256."""
    return sha256(text.encode()).digest()[0] < 32


def draw(task: str, rng: random.Random, evaluation: bool = False) -> Document:
    """A random document of a task, from the training strings or from those kept for evaluation."""
    kind = TASKS[task]
    while True:
        text = "".join(rng.sample(LETTERS, LENGTH) if kind.distinct else rng.choices(LETTERS, k=LENGTH))
        if held_out(text) == evaluation:
            return Document(task, text, kind.answer(text))


def evaluation_documents(task: str, count: int = POOL) -> list[Document]:
    """The first `count` documents of a task's evaluation pool: distinct, and always the same."""
    return list(_distinct(task, count))


def rows(task: str, count: int = POOL) -> list[dict[str, object]]:
    """The evaluation pool as lm-eval reads it: context, answer, choices, gold (index of the answer in choices)."""
    return [
        {
            "context": document.context,
            "answer": document.answer,
            "choices": list(document.text),  # used by the multiple-choice task only
            "gold": document.text.find(document.answer[0]),
        }
        for document in evaluation_documents(task, count)
    ]


def _distinct(task: str, count: int) -> Iterator[Document]:
    rng = random.Random(f"evosearch tiny {task}")  # noqa: S311 - a seeded stream, no secret
    seen: set[str] = set()
    while len(seen) < count:
        document = draw(task, rng, evaluation=True)
        if document.text not in seen:
            seen.add(document.text)
            yield document
