"""Right answers as the task's YAML gives them: choices by index, texts by target."""

from typing import Any

from evosearch.errors import SuiteError
from evosearch.untrusted import shown


def gold_choice(task: Any, document: Any) -> int | None:
    """Return the index of the (first) right choice, or None if the document has none."""
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None


def check_choices(where: str, task: Any, document: Any, answers: bool = True) -> None:
    """Check that a multiple-choice document has several choices, and that its right answers are among them.

    Args:
        where: The document's place, for errors.
        task: The lm-eval task; one of another kind passes.
        document: The document.
        answers: Whether right answers may be read.

    Raises:
        SuiteError: There are fewer than two choices, or a right answer is none of them.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):  # a task that is a Python class
        return
    choices = task.doc_to_choice(document)
    if len(choices) < 2:
        next = "Remove the document, or correct doc_to_choice"
        raise SuiteError(where, f"has {len(choices) or 'no'} choice{'' if choices else 's'}", "At least two", next)
    if not answers:
        return
    gold = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
    for one in gold if isinstance(gold, list) else [gold]:
        if (isinstance(one, int) and not 0 <= one < len(choices)) or (isinstance(one, str) and one not in choices):
            allowed = f"0 to {len(choices) - 1}, or the text of a choice"
            raise SuiteError(where, f"its right answer is {shown(one)}", allowed, "Correct the data, or doc_to_target")


def targets(task: Any, document: Any) -> tuple[str, ...]:
    """Return a generative task's right answers, without a delimiter; empty if the document has none."""
    gold = task.doc_to_target(document)
    several = gold if isinstance(gold, list) else [gold]
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(document)
        several = [choices[one] if isinstance(one, int) else one for one in several]
    return tuple(dict.fromkeys(str(one) for one in several if one is not None and str(one) != ""))


def gold_text(task: Any, document: Any, chat: bool = False) -> str | None:
    """Return a generative task's (first) right answer as a continuation of the context; None if there is none.

    In a chat or without examples it is the target alone. After few-shot examples in plain text it is delimited like
    the examples' targets, since the examples teach the model that format: by a space after a `gen_prefix` without
    trailing space, otherwise by `target_delimiter`.
    """
    found = targets(task, document)
    return delimited(task, document, found[0], chat) if found else None


def delimited(task: Any, document: Any, target: str, chat: bool) -> str:
    """Return a target as `gold_text` delimits it."""
    if not task.config.num_fewshot:
        return target
    prefix = task.doc_to_prefix(document)
    if prefix:
        return target if prefix[-1].isspace() or target[0].isspace() else f" {target}"
    return target if chat else f"{task.config.target_delimiter or ''}{target}"


def spellings(task: Any, document: Any, target: str, chat: bool) -> tuple[str, ...]:
    """Return the continuations that a target may be written as: as `gold_text` does, bare, and after the delimiter."""
    delimiter = task.config.target_delimiter or ""
    return tuple(dict.fromkeys((delimited(task, document, target, chat), target, f"{delimiter}{target}")))
