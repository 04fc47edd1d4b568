"""Right answers of documents, from which the gold log-probability (column GOLD) is computed.

| output type | gold log-probability of a document |
|---|---|
| multiple_choice | log softmax over the choices' log-likelihoods, at the right choice |
| loglikelihood | log-likelihood of the continuation / number of its tokens |
| generate_until | teacher-forced log-likelihood of the first target / number of its tokens |
| loglikelihood_rolling | none: such a task is report-only |

All are at most zero, larger is better, and they change smoothly with the weights, whereas accuracy changes in steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def gold_choice(task: Any, document: Any) -> int | None:
    """Return the index of the (first) right choice, or None if the document has none."""
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None


def gold_text(task: Any, document: Any, chat: bool = False) -> str | None:
    """Return a generative task's right answer as a continuation of the context, or None if the document has none.

    In a chat or without examples it is the target alone. After few-shot examples in plain text it is delimited like
    the examples' targets, since the examples teach the model that format: by a space after a `gen_prefix` without
    trailing space, otherwise by `target_delimiter`.
    """
    gold = task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, int) and task.config.doc_to_choice is not None:
        gold = task.doc_to_choice(document)[gold]
    if gold is None or str(gold) == "":
        return None
    text = str(gold)
    if not task.config.num_fewshot:
        return text
    prefix = task.doc_to_prefix(document)
    if prefix:
        return text if prefix[-1].isspace() or text[0].isspace() else f" {text}"
    return text if chat else f"{task.config.target_delimiter or ''}{text}"


def choice_logprob(lls: Sequence[float], gold: int) -> float:
    """Return log softmax(lls)[gold], in float64."""
    values = np.asarray(lls, dtype=np.float64)
    top = values.max()
    return float(values[gold] - top - np.log(np.exp(values - top).sum()))
