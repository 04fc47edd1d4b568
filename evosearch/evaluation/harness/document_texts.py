"""Documents as people read them: question, choices and right answer, and which choice a model gave."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evosearch.evaluation.harness.freezing import place_of
from evosearch.evaluation.harness.gold import gold_choice, targets
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.suites.tasks import wrap_errors

CHARACTERS = 2000  # of a text; a longer one is cut


@dataclass(frozen=True)
class DocumentText:
    """One document in words.

    Attributes:
        question: The question, without instructions and few-shot examples.
        choices: The choices; empty if the answer is a text.
        right: The right answers, separated by ` | `; empty if the document has none.
        divisors: (choices,) what the metric divides log-likelihoods by; empty if it does not.
        unconditional: The log-likelihoods of the choices without the question follow, and are subtracted.
    """

    question: str
    choices: tuple[str, ...] = ()
    right: str = ""
    divisors: tuple[float, ...] = ()
    unconditional: bool = False

    def chosen(self, loglikelihoods: ArrayLike) -> str:
        """Return the choice that a model gave, by the metric's rule; empty if that is not known.

        Args:
            loglikelihoods: (requests,) those of the document.
        """
        found, count = np.asarray(loglikelihoods, dtype=np.float64), len(self.choices)
        if count == 0 or len(found) not in (count, 2 * count):
            return ""
        values = found[:count]
        if self.unconditional and len(found) == 2 * count:
            values = values - found[count:]
        if self.divisors:
            values = values / np.maximum(self.divisors, 1e-9)
        return self.choices[int(np.argmax(values))]


def text_of(loaded: LoadedTask, doc_id: int) -> DocumentText:
    """Return a document of a loaded task in words.

    Raises:
        SuiteError: lm-eval cannot show it.
    """
    task, document, metric = loaded.task, loaded.documents[doc_id], loaded.spec.metric
    with wrap_errors(place_of(loaded, doc_id), "lm-eval cannot show it"):
        if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
            right = (
                targets(task, document) if hasattr(task.config, "doc_to_choice") else (task.doc_to_target(document),)
            )
            return DocumentText(_cut(task.doc_to_text(document)), (), _joined(right))
        choices = tuple(str(choice) for choice in task.doc_to_choice(document))
        gold = gold_choice(task, document)
        # With several contexts, the choices are the contexts, and the target is what follows each of them
        several = getattr(task, "multiple_input", 0)
        question = task.doc_to_target(document) if several else task.doc_to_text(document)
        return DocumentText(
            question=_cut(question),
            choices=tuple(map(_cut, choices)),
            right="" if gold is None else _cut(choices[gold]),
            divisors=_divisors(metric, choices),
            unconditional=metric == "acc_mutual_info",
        )


def _divisors(metric: str, choices: Sequence[str]) -> tuple[float, ...]:
    """What lm-eval divides the log-likelihoods of choices by, for a metric."""
    if metric == "acc_norm":
        return tuple(float(len(choice)) for choice in choices)
    return tuple(float(len(choice.encode())) for choice in choices) if metric == "acc_bytes" else ()


def _joined(texts: Sequence[object]) -> str:
    return _cut(" | ".join(map(str, texts)))


def _cut(text: object) -> str:
    found = str(text).strip()
    return found if len(found) <= CHARACTERS else f"{found[:CHARACTERS]}…"
