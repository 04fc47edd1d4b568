"""Right answers of a document, as requests of a frozen batch. Plain data.

`item_fitness.py` computes the document's fitness from the log-likelihoods of these requests.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class RightChoice:
    """A document answered by the likeliest of its choices."""

    requests: tuple[int, ...]  # request of each choice
    right: tuple[int, ...]  # choices that the metric counts as right
    gold: int | None  # the task's first right choice
    lengths: tuple[float, ...] = ()  # divisors of the choices' log-likelihoods; empty: they are not divided
    minus: tuple[int, ...] = ()  # requests of the choices without the question, which are subtracted; empty: none


@dataclass(frozen=True)
class RightText:
    """A document answered by a text: any of several continuations, of which none begins with another.

    If `per_token`, there is one continuation, and its log-likelihood is divided by its number of tokens.
    """

    requests: tuple[int, ...]
    per_token: bool = False


@dataclass(frozen=True)
class RightConclusion:
    """A document answered by the conclusion of a generated text, which a regular expression finds.

    The conclusion's probability is conditioned on the model's own text before it, so its requests depend on the model.
    """

    query: int  # index of the document's query that generates
    prompt: str
    pattern: re.Pattern[str]
    select: int  # which match is the conclusion, as an index into all matches
    texts: tuple[str, ...]  # right conclusions


RightAnswer = RightChoice | RightText | RightConclusion
