"""Documents that must not lie in different splits: near-duplicates, and the groups that a task's `group_by` names.

Within a split, such documents are not independent: they are the groups of its items, by which standard errors are
clustered. Two near-duplicates are nearly one question asked twice; counted as two, they would make an interval narrower
than what was seen supports.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.near_duplicates import near_duplicates
from evosearch.evaluation.suites.question_fields import asked
from evosearch.evaluation.suites.splits import Selection, document_hash

if TYPE_CHECKING:
    from evosearch.evaluation.harness.freezing import LoadedTask

_NAME = 16  # hex digits of a document's hash that name its group


@dataclass(frozen=True)
class Kinship:
    """What ties documents together, by document hash."""

    clusters: Mapping[str, str] = field(default_factory=dict)  # document → its cluster of near-duplicates
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # task → document → the group it is in
    scopes: Mapping[str, str] = field(default_factory=dict)  # task → what its group names belong to

    def ties(self) -> dict[str, tuple[str, ...]]:
        """Document → keys of what it belongs to; documents that share one are kept in one split."""
        found: dict[str, tuple[str, ...]] = {doc_hash: (f"near:{name}",) for doc_hash, name in self.clusters.items()}
        for task, names in self.groups.items():
            for doc_hash, name in names.items():
                key = f"group:{self.scopes[task]}:{name}"  # tasks of other documents may use the same name
                if key not in found.get(doc_hash, ()):
                    found[doc_hash] = (*found.get(doc_hash, ()), key)
        return found

    def item_groups(self, task: str, chosen: Selection) -> tuple[str, ...]:
        """The group of each item of a split: empty where no two belong together and the task names no groups.

        A group and a cluster that overlap are one group. It is called by the least of its `group_by` values, or else
        by the least document hash in it.
        """
        own, together = self.groups.get(task, {}), _Joined()
        for doc_hash in chosen.doc_hashes:
            together.join(doc_hash, *self._keys(doc_hash, own))
        members: dict[str, list[str]] = {}
        for doc_hash in chosen.doc_hashes:
            members.setdefault(together.find(doc_hash), []).append(doc_hash)
        if not own and len(members) == len(chosen.doc_hashes):
            return ()
        names = {
            root: min(own[doc_hash] for doc_hash in kin) if own else min(kin)[:_NAME] for root, kin in members.items()
        }
        return tuple(names[together.find(doc_hash)] for doc_hash in chosen.doc_hashes)

    def _keys(self, doc_hash: str, groups: Mapping[str, str]) -> list[str]:
        keys = [f"near:{self.clusters[doc_hash]}"] if doc_hash in self.clusters else []
        return [*keys, f"group:{groups[doc_hash]}"] if groups else keys


def find_kinship(
    tasks: Sequence["LoadedTask"], examples: Sequence[tuple["LoadedTask", Sequence[Any]]], threshold: float
) -> Kinship:
    """What ties the documents of a suite's tasks.

    Args:
        tasks: for every pool of documents; those of one suite task name groups alike.
        examples: few-shot examples that are compared with them, and whose they are.
        threshold: see `near_duplicates`; zero (or false) compares nothing.

    Raises:
        SuiteError: a document has no group where one is asked for.
    """
    pools: dict[str, list[str]] = {}
    groups: dict[str, dict[str, str]] = {}
    for loaded in tasks:
        pools.setdefault(loaded.spec.name, []).append(loaded.name)
        if loaded.spec.group_by is not None:
            names = group_names(loaded.where, loaded.name, loaded.documents, loaded.spec.group_by)
            groups.setdefault(loaded.spec.name, {}).update(zip(loaded.hashes, names, strict=True))
    clusters: dict[str, str] = {}
    if threshold:
        compared: list[tuple[LoadedTask, Sequence[Any], Sequence[str]]]
        compared = [(loaded, loaded.documents, loaded.hashes) for loaded in tasks]
        compared += [(loaded, pool, tuple(map(document_hash, pool))) for loaded, pool in examples]
        asking = [dict(zip(hashes, asked(loaded.task, pool), strict=True)) for loaded, pool, hashes in compared]
        clusters = near_duplicates(asking, threshold)
    return Kinship(clusters, groups, scopes(pools))


def scopes(pools: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Task → a name that it shares with tasks of the same documents: in all of them, groups of one name are one.

    Args:
        pools: task → the lm-eval tasks it draws from.
    """
    together = _Joined()
    for own in pools.values():
        together.join(*own)
    return {task: together.find(own[0]) for task, own in pools.items()}


class _Joined:
    """Keys in disjoint sets, each set known by one of its keys."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def find(self, key: str) -> str:
        while self._above.setdefault(key, key) != key:
            key = self._above[key]
        return key

    def join(self, first: str, *others: str) -> None:
        for key in others:
            self._above[self.find(key)] = self.find(first)


def group_names(where: str, name: str, documents: Sequence[Any], group_by: str) -> list[str]:
    """The group of each document: the value of its field `group_by`, or what it renders as a sandboxed Jinja template.

    Args:
        where: the task's key in the suite, for errors.
        name: the lm-eval task's.

    Raises:
        SuiteError: no such field, a template that cannot be rendered, or a document without a group.
    """
    where = join(where, "group_by")
    if "{{" in group_by or "{%" in group_by:
        values = _rendered(where, name, documents, group_by)
    elif lacking := [document for document in documents if group_by not in document]:
        what = f"documents of '{name}' have no field '{group_by}'"
        raise SuiteError(where, what, f"Fields: {', '.join(lacking[0])}", did_you_mean(group_by, lacking[0]))
    else:
        values = [_text(document[group_by]) for document in documents]
    for doc_id, value in enumerate(values):
        if not value.strip():
            raise SuiteError(where, f"document {doc_id} of '{name}' has no group", next="Take another field")
    return values


def _rendered(where: str, name: str, documents: Sequence[Any], group_by: str) -> list[str]:
    from jinja2 import TemplateError

    try:
        template = _templates().from_string(group_by)
    except TemplateError as exc:
        raise SuiteError(where, f"this is no Jinja template: {type(exc).__name__}: {exc}") from exc
    values: list[str] = []
    for document in documents:
        try:
            values.append(template.render(**document))
        except Exception as exc:  # whatever a template's expressions raise
            what = f"the group of document {len(values)} of '{name}' cannot be made: {type(exc).__name__}: {exc}"
            raise SuiteError(where, what) from exc
    return values


@cache
def _templates() -> Any:
    """lm-eval's template environment in a sandbox: a suite is data, and its templates reach nothing but documents."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval.utils import env

    found = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    found.filters["regex_replace"] = env.filters["regex_replace"]
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
