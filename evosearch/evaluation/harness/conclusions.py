"""Second pass over generated texts: how likely is the right conclusion after the model's own reasoning?

A conclusion is cut from the text by the task's own regex filter. The requests condition on the prompt and on the text
before the conclusion, so they differ from model to model and are made after generation. Conclusions need no end. A text
without a conclusion, or in another language than the task's, has none that is right: its probability is 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.answer_key import cut_conclusion
from evosearch.evaluation.harness.requests import Pair, disjoint
from evosearch.evaluation.harness.right_answers import RightConclusion, RightText

Tokenize = Callable[[str, str], Pair]
Encode = Callable[[Pair], LoglikelihoodRequest]


@dataclass(frozen=True)
class SecondPass:
    """Requests that follow those of a frozen batch, and the right texts among them."""

    requests: tuple[LoglikelihoodRequest, ...] = ()
    # Task → item → right texts.
    answers: Mapping[str, Mapping[int, RightText]] = field(default_factory=dict)


NO_SECOND_PASS = SecondPass()


@dataclass(frozen=True)
class Concluding:
    """One document answered by a conclusion, and the text that a model generated for it."""

    task: str
    item: int
    key: RightConclusion
    text: str
    right: bool  # whether the metric counts the text as right
    ruled_out: bool  # whether it is in another language than the task's


def second_pass(documents: Sequence[Concluding], first: int, tokenize: Tokenize, encode: Encode) -> SecondPass:
    """Make the requests for the right conclusions of generated texts.

    Args:
        documents: The documents with the model's texts.
        first: Index of the first request to make.
        tokenize: Tokens of (context, continuation).
        encode: The request of such tokens.
    """
    requests: list[LoglikelihoodRequest] = []
    answers: dict[str, dict[int, RightText]] = {}
    for one in documents:
        own = [encode(pair) for pair in _pairs(one, tokenize)]
        indices = range(first + len(requests), first + len(requests) + len(own))
        answers.setdefault(one.task, {})[one.item] = RightText(tuple(indices))
        requests += own
    return SecondPass(tuple(requests), answers)


def _pairs(one: Concluding, tokenize: Tokenize) -> list[Pair]:
    """Right conclusions after the text's own reasoning; the text's own one is among them if it is right."""
    cut = cut_conclusion(one.text, one.key.pattern, one.key.select)
    if cut is None or one.ruled_out:
        return []
    start, own = cut
    texts = dict.fromkeys((*([own] if one.right else []), *one.key.texts))
    return disjoint([tokenize(one.key.prompt + one.text[:start], text) for text in texts])
