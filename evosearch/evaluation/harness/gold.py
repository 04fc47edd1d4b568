"""What the right answer of a document is: what the gold log-probability (column GOLD) is read from.

| output type | gold log-probability of a document |
|---|---|
| multiple_choice | log softmax over the choices' log-likelihoods, at the right choice |
| loglikelihood | log-likelihood of the continuation / its tokens |
| generate_until | teacher-forced log-likelihood of the first target / its tokens |
| loglikelihood_rolling | none: such a task is only reported |

All are at most zero, larger is better, and move smoothly with the weights where accuracy jumps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def gold_choice(task: Any, document: Any) -> int | None:
    """Index of the right choice (of several right ones the first), None where the document names none."""
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None


def gold_text(task: Any, document: Any, chat: bool = False) -> str | None:
    """The right answer of a generative task as it follows its context, None where the document has none.

    It is the target alone, which is how a turn of a chat begins. Where a plain text shows examples, it is led in as
    lm-eval leads in theirs, since that is what the model is being taught to write: by a space after the task's
    `gen_prefix` that has none, or else by its `target_delimiter`.
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
    """Log softmax(lls)[gold], in float64."""
    values = np.asarray(lls, dtype=np.float64)
    top = values.max()
    return float(values[gold] - top - np.log(np.exp(values - top).sum()))
