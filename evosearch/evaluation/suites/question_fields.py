"""Which fields of a task's documents ask its question: what makes two of them near-duplicates.

These are the fields that the task's prompt and choices are made of. Others may differ between two documents that ask
the same (a worked solution, an identifier, where it was found), or be alike where they do not (a subject).
"""

from collections.abc import Mapping, Sequence
from typing import Any


def asked(task: Any, documents: Sequence[Any]) -> list[Any]:
    """The documents with the fields alone that ask the question; whole, where code rather than templates makes it."""
    if not documents or not isinstance(documents[0], Mapping):
        return list(documents)
    fields = _fields(task, documents[0])
    if not fields:
        return list(documents)
    return [{key: value for key, value in document.items() if key in fields} for document in documents]


def _fields(task: Any, document: Mapping[str, Any]) -> set[str]:
    """The fields that prompt and choices name; of a task without a prompt (a perplexity), those of its target."""
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

    if isinstance(template, list | Mapping):  # choices that are written out, some perhaps as templates
        values = template.values() if isinstance(template, Mapping) else template
        return set().union(*(_named(value, document) for value in values))
    if not isinstance(template, str):
        return set()
    if template in document:
        return {template}
    return meta.find_undeclared_variables(env.parse(template)) & set(document)
