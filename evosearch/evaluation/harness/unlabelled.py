"""Reading of documents without their right answers, which then need not exist."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_answer(task: Any, document: Any) -> Iterator[None]:
    """Hide a document's right answer from its lm-eval task inside the block; few-shot examples keep theirs.

    lm-eval asks for the answer when it builds a prompt, and does not use it. What is hidden is the target or, if the
    choices differ in the question (`multiple_input`), the number of the right question. A `loglikelihood` task is left
    as it is: its target is the text to read.

    Args:
        task: lm_eval.api.task.Task.
        document: The document, as the same object that is passed to the task.
    """
    if task.OUTPUT_TYPE == "loglikelihood":
        yield
        return
    name, nothing = ("doc_to_text", 0) if getattr(task, "multiple_input", 0) else ("doc_to_target", "")
    original = getattr(task, name)
    setattr(task, name, _hiding(original, document, nothing))
    try:
        yield
    finally:
        setattr(task, name, original)


def _hiding(function: Callable[..., Any], hidden: Any, nothing: Any) -> Callable[..., Any]:
    def read(document: Any, *args: Any, **kwargs: Any) -> Any:
        return nothing if document is hidden else function(document, *args, **kwargs)

    return read
