"""Linked documents (leakage groups): near-duplicates, and the groups that a task's `group_by` defines.

Linked documents never end up in different splits. Within a split they are not independent, so they form the groups by
which standard errors are clustered: counting two near-duplicates as two items would make an interval too narrow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.group_template import group_template
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.suites.near_duplicates import near_duplicates
from evosearch.evaluation.suites.question_fields import keep_question_fields
from evosearch.evaluation.suites.splits import Selection, document_hash
from evosearch.untrusted import reason

_NAME = 16  # hex digits of a document's hash that name its group


@dataclass(frozen=True)
class LinkedDocuments:
    """Links between documents, by document hash."""

    clusters: Mapping[str, str] = field(default_factory=dict)  # document → its cluster of near-duplicates
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # task → document → its group
    scopes: Mapping[str, str] = field(default_factory=dict)  # task → namespace of its group names

    def links(self) -> dict[str, tuple[str, ...]]:
        """Return document → keys of its clusters and groups; documents that share a key stay in one split."""
        found: dict[str, tuple[str, ...]] = {doc_hash: (f"near:{name}",) for doc_hash, name in self.clusters.items()}
        for task, names in self.groups.items():
            for doc_hash, name in names.items():
                key = f"group:{self.scopes[task]}:{name}"  # tasks on other documents may use the same name
                if key not in found.get(doc_hash, ()):
                    found[doc_hash] = (*found.get(doc_hash, ()), key)
        return found

    def item_groups(self, task: str, chosen: Selection) -> tuple[str, ...]:
        """Return the group of each item of a split; empty if no two are linked and the task defines no groups.

        Overlapping groups and clusters are merged. A merged group is named after the smallest of its `group_by` values
        or, without them, after the smallest document hash in it.
        """
        own, sets = self.groups.get(task, {}), _DisjointSets()
        for doc_hash in chosen.doc_hashes:
            sets.union(doc_hash, *self._keys(doc_hash, own))
        members: dict[str, list[str]] = {}
        for doc_hash in chosen.doc_hashes:
            members.setdefault(sets.find(doc_hash), []).append(doc_hash)
        if not own and len(members) == len(chosen.doc_hashes):
            return ()
        names = {
            root: min(own[doc_hash] for doc_hash in linked) if own else min(linked)[:_NAME]
            for root, linked in members.items()
        }
        return tuple(names[sets.find(doc_hash)] for doc_hash in chosen.doc_hashes)

    def _keys(self, doc_hash: str, groups: Mapping[str, str]) -> list[str]:
        keys = [f"near:{self.clusters[doc_hash]}"] if doc_hash in self.clusters else []
        return [*keys, f"group:{groups[doc_hash]}"] if groups else keys


def link_documents(
    tasks: Sequence[LoadedTask], examples: Sequence[tuple[LoadedTask, Sequence[Any]]], threshold: float
) -> LinkedDocuments:
    """Find the links between the documents of a suite's tasks.

    Args:
        tasks: One loaded task for each pool of documents; pools of one suite task share their group names.
        examples: Few-shot examples to compare with the documents, each with its task.
        threshold: Similarity threshold of `near_duplicates`; zero (or false) disables the comparison.

    Raises:
        SuiteError: A document of a task with `group_by` has no group.
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
        questions = [
            dict(zip(hashes, keep_question_fields(loaded.task, pool), strict=True)) for loaded, pool, hashes in compared
        ]
        clusters = near_duplicates(questions, threshold)
    return LinkedDocuments(clusters, groups, scopes(pools))


def scopes(pools: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return task → namespace of its group names, shared by all tasks on the same documents.

    Args:
        pools: Task → the lm-eval tasks that it draws from.
    """
    sets = _DisjointSets()
    for own in pools.values():
        sets.union(*own)
    return {task: sets.find(own[0]) for task, own in pools.items()}


class _DisjointSets:
    """Union-find over string keys; each set is represented by one of its keys."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        while self._parent.setdefault(key, key) != key:
            key = self._parent[key]
        return key

    def union(self, first: str, *others: str) -> None:
        for key in others:
            self._parent[self.find(key)] = self.find(first)


def group_names(where: str, name: str, documents: Sequence[Any], group_by: str) -> list[str]:
    """Return the group of each document: the value of a field, or the output of a Jinja template.

    Args:
        where: The task's key in the suite, for errors.
        name: Name of the lm-eval task, for errors.
        documents: The documents to group.
        group_by: Name of a field, or a template.

    Raises:
        SuiteError: The field does not exist, the template cannot be rendered, or a document has no group.
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
            raise SuiteError(where, f"document {doc_id} of '{name}' has no group", next="Use another field")
    return values


def _rendered(where: str, name: str, documents: Sequence[Any], group_by: str) -> list[str]:
    template = group_template(where, group_by)
    values: list[str] = []
    for document in documents:
        try:
            values.append(template.render(**document))
        except Exception as exc:  # expressions of a template can raise anything
            said = f"{type(exc).__name__}: {reason(exc)}"
            what = f"cannot render the group of document {len(values)} of '{name}': {said}"
            raise SuiteError(where, what) from exc
    return values


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
