"""The eight tasks: prompts and right answers made from the sources.

All prompts end with `Answer:`, so that only the words before it tell a model which task it is: `Sort: …` and `Rank: …`
put the same kind of lists in opposite orders, `Reverse: …` has lists, too, and two tasks answer yes or no.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from examples.eight_experts.sources import Sources
from examples.smollm2.training import Pair

Asked = Iterator[tuple[str, str]]  # questions and right answers, possibly with repetitions

LANGUAGES = {"french": "french", "irish": "irish", "brazilian": "portuguese", "spanish": "spanish"}  # set → answer
WORDS = 1200  # of each language


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        asked: Makes its questions and right answers.
        steps: Training steps of its expert.
        choices: The possible answers; empty if the model writes the answer, up to the end of the line.
    """

    asked: Callable[[Sources], Asked]
    steps: int
    choices: tuple[str, ...] = ()

    def pair(self, question: str, answer: str) -> Pair:
        """Prompt and right answer of a document as in `evals/eight/NAME.yaml`; a written answer has an end."""
        return f"{question}\nAnswer:", f" {answer}" if self.choices else f" {answer}\n"


def reverse(sources: Sources) -> Asked:
    """Four words of a text in reverse order."""
    for found in sources.questions(
        "algorithmic.word_sequence_reversal", "WordSequenceReversal", **_exactly(4, "words")
    ):
        yield ("Reverse: " + ", ".join(found["metadata"]["words"]), found["answer"])


def sort(sources: Sources) -> Asked:
    """Four numbers below 100, the smallest first."""
    for numbers in _numbers(sources, "ascending"):
        yield "Sort: " + _listed(numbers), _listed(sorted(numbers))


def rank(sources: Sources) -> Asked:
    """Four numbers below 100, the largest first."""
    for numbers in _numbers(sources, "descending"):
        yield "Rank: " + _listed(numbers), _listed(sorted(numbers, reverse=True))


def compute(sources: Sources) -> Asked:
    """Sum or difference of two numbers with two digits."""
    for found in sources.questions("arithmetic.chain_sum", "ChainSum", **_exactly(2, "terms"), **_exactly(2, "digits")):
        yield ("Compute: " + found["metadata"]["expression"], found["answer"])


def family(sources: Sources) -> Asked:
    """Relation of two members of a family of three or four."""
    sizes = {"min_family_size": 3, "max_family_size": 4}
    for found in sources.questions("graphs.family_relationships", "FamilyRelationships", **sizes):
        story, facts = found["question"].split("\n\n")[0], found["metadata"]
        asked = f"What is {facts['person1']} to {facts['person2']}?"
        yield (f"Family: {story}\n{asked}", found["answer"])


def language(sources: Sources) -> Asked:
    """Language of a word that only one of four languages has."""
    of: dict[str, set[str]] = {}
    for name, answer in LANGUAGES.items():
        for word, exists in sources.rows(f"{name}-lexicon"):
            if exists == "Y" and 4 <= len(word) <= 12:
                of.setdefault(word.lower(), set()).add(answer)
    for answer in LANGUAGES.values():
        own = sorted(word for word, languages in of.items() if languages == {answer})
        for word in random.Random(answer).sample(own, WORDS):
            yield (f"Word: {word}", answer)


def sarcasm(sources: Sources) -> Asked:
    """Whether a headline is from a satirical newspaper."""
    for headline, sarcastic in sources.rows("sarcasm"):
        yield (f"Headline: {headline}", "yes" if sarcastic == "1" else "no")


def syllogism(sources: Sources) -> Asked:
    """Whether a conclusion follows from two premises."""
    for found in sources.questions("logic.syllogisms", "Syllogism"):
        premises = re.findall(r"^\d\. (.*)$", found["question"], re.MULTILINE)
        asked = f"Premises: {'. '.join(premises)}.\nConclusion: {found['metadata']['conclusion']}."
        yield (asked, found["answer"].lower())


def _numbers(sources: Sources, direction: str) -> Iterator[list[int]]:
    """Numbers of the questions that ask for one of the two orders."""
    settings = _exactly(4, "numbers") | _exactly(0, "decimals") | {"min_value": 0, "max_value": 99}
    for found in sources.questions("algorithmic.number_sorting", "NumberSorting", **settings):
        if found["metadata"]["direction"] == direction:
            yield [int(float(number)) for number in found["metadata"]["original_numbers"]]


def _exactly(count: int, what: str) -> dict[str, int]:
    """A generator's settings for a fixed number."""
    return {f"min_{what}": count, f"max_{what}": count}


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


TASKS = {
    "reverse": Task(reverse, 60),
    "sort": Task(sort, 60),
    "rank": Task(rank, 40),
    "compute": Task(compute, 120),
    "family": Task(family, 40),
    "language": Task(language, 80, ("french", "irish", "portuguese", "spanish")),
    "sarcasm": Task(sarcasm, 50, ("no", "yes")),
    "syllogism": Task(syllogism, 50, ("no", "yes")),
}
