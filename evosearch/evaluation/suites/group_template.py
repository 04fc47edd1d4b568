"""Templates of `group_by`: fields of a document, filters and text, in time and memory linear in the document.

A suite is data, so its templates may neither reach anything but documents nor compute for long: only the nodes, filters
and methods below are allowed. None repeats text, so no expression can grow faster than it is long.
"""

from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evosearch.errors import SuiteError
from evosearch.untrusted import boundary, reason

FILTERS = frozenset(
    {"abs", "capitalize", "d", "default", "first", "float", "int", "last", "length", "lower", "round", "string"}
    | {"title", "trim", "upper"}
)
METHODS = frozenset(
    {"lower", "lstrip", "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip", "split"}
    | {"strip", "upper"}
)
_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.Slice, nodes.Concat, nodes.Add, nodes.Sub, nodes.FloorDiv, nodes.Neg, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.CondExpr, nodes.If),
)
_WORDS = {nodes.For: "a loop", nodes.Mul: "'*'", nodes.Pow: "'**'", nodes.Mod: "'%'", nodes.Macro: "a macro"}


def group_template(where: str, text: str) -> Template:
    """Compile a template.

    Args:
        where: The key, for errors.
        text: The template.

    Raises:
        SuiteError: It is not a template, or has something else than fields, filters and text.
    """
    with boundary(where, SuiteError, "not a valid Jinja template"):
        try:
            tree = _environment().parse(text)
            _check(tree, where)
            return _environment().from_string(tree)
        except TemplateError as exc:
            raise SuiteError(where, f"not a valid Jinja template: {type(exc).__name__}: {reason(exc)}") from exc


def _check(node: nodes.Node, where: str) -> None:
    if isinstance(node, nodes.Filter):
        _allow(node.name in FILTERS, where, f"the filter '{node.name}'")
    elif isinstance(node, nodes.Call):
        method = node.node.attr if isinstance(node.node, nodes.Getattr) else ""
        _allow(method in METHODS, where, f"a call of '{method}'" if method else "a call")
    else:
        _allow(isinstance(node, _NODES), where, _WORDS.get(type(node), f"'{type(node).__name__.lower()}'"))
    for child in node.iter_child_nodes():
        _check(child, where)


def _allow(allowed: bool, where: str, what: str) -> None:
    if not allowed:
        known = (
            f"Filters: {', '.join(sorted(FILTERS))}. Methods: {', '.join(sorted(METHODS))}. No loops, '*', '**', '%'"
        )
        next = "Add the group as a field of the documents, in the task's `process_docs`"
        raise SuiteError(where, f"a template of a suite cannot have {what}", known, next)


@cache
def _environment() -> Any:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, optimized=False)
