"""Cache of a task's rendered templates, by document.

lm-eval compiles a Jinja template at every use (a millisecond), and `process_results` uses two or three per document,
which takes longer than scoring a small model. Documents never change, so their rendered fields do not either.
"""

import copy
from typing import Any


def cache_templates(task: Any, documents: tuple[Any, ...]) -> None:
    """Cache the prompt, target and choices of these documents, which must be kept alive."""
    known = {id(document) for document in documents}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, _Cached(getattr(task, name), known))


class _Cached:
    """A function of a document, cached for known documents."""

    def __init__(self, function: Any, known: set[int]) -> None:
        self._function, self._known = function, known
        self._made: dict[int, Any] = {}

    def __call__(self, document: Any, *args: Any, **kwargs: Any) -> Any:
        key = id(document)
        if args or kwargs or key not in self._known:
            return self._function(document, *args, **kwargs)
        if key not in self._made:
            self._made[key] = self._function(document)
        return copy.copy(self._made[key])  # the caller may change a list
