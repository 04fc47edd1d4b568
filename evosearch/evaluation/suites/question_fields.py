"""Fields of a task's documents that make up the question; near-duplicates are judged by these fields only.

They are the fields used by the task's prompt and choices. Other fields may differ between two documents with the same
question (a worked solution, an identifier, a source) or be equal for different questions (a subject).
"""

from collections.abc import Mapping, Sequence
from typing import Any


def keep_question_fields(task: Any, documents: Sequence[Any]) -> list[Any]:
    """Return the documents with their question fields only; unchanged if code rather than a template builds prompts."""
    if not documents or not isinstance(documents[0], Mapping):
        return list(documents)
    fields = _fields(task, documents[0])
    if not fields:
        return list(documents)
    return [{key: value for key, value in document.items() if key in fields} for document in documents]


def _fields(task: Any, document: Mapping[str, Any]) -> set[str]:
    """Fields used by prompt and choices; for a task without a prompt (perplexity), those of its target."""
    config = task.config
    for templates in ((config.doc_to_text, config.doc_to_choice), (config.doc_to_target,)):
        if any(callable(template) for template in templates) or not hasattr(task, "fewshot_cfg"):
            return set()
        found = set().union(*(_named(template, document) for template in templates))
        if found:
            return found
    return set()


def _named(template: Any, document: Mapping[str, Any]) -> set[str]:
    from jinja2 import meta
    from lm_eval.utils import env

    if isinstance(template, list | Mapping):  # literal choices, some of which may be templates
        values = template.values() if isinstance(template, Mapping) else template
        return set().union(*(_named(value, document) for value in values))
    if not isinstance(template, str):
        return set()
    if template in document:
        return {template}
    return meta.find_undeclared_variables(env.parse(template)) & set(document)
