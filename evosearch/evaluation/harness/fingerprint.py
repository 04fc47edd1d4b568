"""Fingerprints of lm-eval tasks, to detect edits between the start of a search and its resume.

Values are digested as resolved by lm-eval, so comments, key order and `include:` make no difference. A function is
digested by its syntax tree without docstrings, together with every function, class and constant of its own folder that
it refers to, recursively. Local paths are ignored: a data file is represented by its name (its content is covered by
the digests of the item sets), an opaque object by its type.
"""

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

# Configuration keys that cannot change a score.
_NO_EFFECT = {"task_alias", "tag", "should_decontaminate", "doc_to_decontamination_query"}
_PLACES = {"cache_dir"}  # keys of dataset_kwargs that only set where copies are stored
_FILES = {"data_files", "data_dir"}  # keys of dataset_kwargs with file names
_LENGTH = 16  # hex digits of a digest


def fingerprint(task: Any) -> dict[str, str]:
    """Return configuration key → digest of its resolved value, without unset keys.

    For a task that is a Python class, the key `class` covers its code.
    """
    found = {}
    for field in fields(task.config):
        value = getattr(task.config, field.name)
        if field.name not in _NO_EFFECT and value is not None:
            found[field.name] = _digest(_config_value(field.name, value))
    kind = type(task)
    if not kind.__module__.startswith("lm_eval.api."):
        found["class"] = _digest(_plain(kind, ()))
    return found


def _config_value(key: str, value: Any) -> Any:
    if key == "metadata" and isinstance(value, Mapping):
        return _plain({k: v for k, v in value.items() if k != "config_source"}, ())
    if key == "dataset_kwargs" and isinstance(value, Mapping):
        kept = {k: _plain(v, ()) for k, v in value.items() if k not in _PLACES}
        return {k: _without_folders(v, k in _FILES) for k, v in kept.items()}
    return _without_folders(value) if key == "dataset_path" else _plain(value, ())


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_LENGTH]


def _without_folders(data: Any, paths: bool = False) -> Any:
    """Replace absolute paths by file names, and relative ones too if all values are paths."""
    if isinstance(data, dict):
        return {key: _without_folders(value, paths) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_folders(value, paths) for value in data]
    return Path(data).name if isinstance(data, str) and (paths or Path(data).is_absolute()) else data


def _plain(value: Any, above: tuple[Any, ...]) -> Any:
    """A value as JSON data, code by its syntax tree. `above` is the enclosing code, to stop recursion."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and not is_dataclass(value):
        return {str(key): _plain(item, above) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, above) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item, above), sort_keys=True) for item in value)
    if isinstance(value, re.Pattern):
        return ["pattern", str(value.pattern), value.flags]
    if isinstance(value, partial):
        return ["partial", _plain(value.func, above), _plain(value.args, above), _plain(value.keywords, above)]
    if isinstance(value, type) or inspect.isroutine(value):
        return _code(inspect.unwrap(value) if callable(value) else value, above)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), above) for field in fields(value)}
    return ["a", type(value).__qualname__]


def _code(value: Any, above: tuple[Any, ...]) -> Any:
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if any(value is one for one in above):
        return ["itself", name]
    function = getattr(value, "__func__", value)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # built in, created at run time, or a lambda inside an expression
        return ["code", name, _bytecode(function)]
    return ["code", _dump(tree), _names(function, (*above, value))]


def _dump(tree: ast.Module) -> str:
    """A syntax tree as source text without docstrings, comments and layout."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names(value: Any, above: tuple[Any, ...]) -> dict[str, Any]:
    """Everything in the same folder that the code refers to, by name."""
    codes = [value] if isinstance(value, FunctionType) else _methods(value)
    found: dict[str, Any] = {}
    for function in codes:
        if function.__closure__:
            cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
            found.update((f"{name}'", _plain(cell.cell_contents, above)) for name, cell in cells)
        home = Path(function.__code__.co_filename).parent
        for name in sorted(_global_names(function.__code__) & function.__globals__.keys()):
            named = function.__globals__[name]
            if isinstance(named, ModuleType):
                file = getattr(named, "__file__", None)
                if file and Path(file).parent == home and file.endswith(".py"):
                    found[name] = _dump(ast.parse(Path(file).read_bytes()))
            elif isinstance(named, type) or inspect.isroutine(named):
                try:
                    own = Path(inspect.getfile(inspect.unwrap(named))).parent == home
                except (TypeError, OSError):
                    own = False
                found[name] = _plain(named, above) if own else named.__qualname__
            else:
                found[name] = _plain(named, above)
    return found


def _methods(value: Any) -> list[FunctionType]:
    members = (getattr(one, "__func__", one) for one in vars(value).values()) if isinstance(value, type) else ()
    return [one for one in members if isinstance(one, FunctionType)]


def _global_names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*(_global_names(constant) for constant in inner))


def _bytecode(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return hashlib.sha256(code.co_code).hexdigest() if isinstance(code, CodeType) else ""
