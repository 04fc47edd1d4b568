"""Resume check: the inputs of a recorded search must be what they were when it started.

Scores of one search are compared with each other, so all of them must come from the same models and questions. Digests
of everything outside the spec that determines a score are recorded when a search starts, and compared at every resume.
"""

import re
from collections.abc import Mapping
from typing import Any

from evosearch.checkpoints.sidecar import files_of
from evosearch.errors import LedgerError
from evosearch.evaluation.types import ItemSet
from evosearch.recipe.identity import TOKENIZER_OF
from evosearch.recipe.sample import PREFIX as SAMPLE_OF
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.records import Circumstances
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import SearchSpec

DIGEST = re.compile("[0-9a-f]{16,}")
OR_RENAME = "or give the new search another name"


def circumstances(prepared: Prepared) -> Circumstances:
    """Everything outside the spec that scores depend on, as the `started` event records it."""
    return Circumstances(
        inputs=prepared.models.inputs,
        files={name: files_of(checkpoint) for name, checkpoint in prepared.models.checkpoints.items()},
        suite=prepared.suite.to_record(),
        tasks=prepared.fingerprint,
        batches={split: batch.digest for split, batch in prepared.ranked.items()},
        item_sets={
            split: {items.task: items.digest for items in batch.sets} for split, batch in prepared.batches.items()
        },
        recipes=prepared.models.opener.nested,
    )


def refuse_other_search(ledger: Ledger, prepared: Prepared) -> SearchState | None:
    """Check that the ledger's search of this name, if any, is the prepared one.

    Returns:
        The recorded state of the search; None if it has not started.

    Raises:
        LedgerError: The spec, a model, the suite or a document differs; names the first difference, then and now.
    """
    spec, latest = prepared.spec, None
    for known in ledger.searches():
        if known.name != spec.name:
            continue
        state = SearchState.from_events(ledger.events(known.search_id))
        recorded, now = state.circumstances, circumstances(prepared)
        if state.spec["suite"]["digest"] != prepared.suite.digest():
            _check_suite(recorded.suite, now.suite, prepared)
        check_same_search(state.spec, spec, str(ledger.url))
        _check_inputs(recorded.inputs, prepared)
        _check_files(recorded.files, now.files, prepared)
        _check_tasks(recorded.tasks, prepared)
        _check_documents(recorded.item_sets, ledger, prepared)
        latest = latest or state
    return latest


def check_same_search(recorded: Mapping[str, Any], spec: SearchSpec, where: str) -> None:
    """Check that a recorded identity is the spec's.

    Args:
        recorded: Identity of the search of this name in the ledger.
        spec: The spec as it is now.
        where: The ledger, for errors.

    Raises:
        LedgerError: Names the first key that differs.
    """
    old, new = _flat(recorded), _flat(spec.identity())
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            then = f"with {old[key]!r}" if key in old else "without this key"
            now = f"has {new[key]!r}" if key in new else "leaves it out"
            raise LedgerError(
                spec.at(key),
                f"this is another search: '{spec.name}' in {where} was started {then}, the file {now}",
                "Budget, workers, tracking and ledger may change between runs",
                "Undo the change, or give the new search another name",
            )


def _check_suite(recorded: Mapping[str, Any], now: Mapping[str, Any], prepared: Prepared) -> None:
    """Name the key of the suite that changed; the suite's digest in the spec's identity only shows that one did."""
    old, new = _flat(recorded), _flat(now)
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key) and key.rpartition(".")[2] != "place":  # affects no score
            raise _changed(f"{prepared.suite.source}: {key}", "it", old.get(key), new.get(key), "Undo the change")


def _check_inputs(recorded: Mapping[str, str], prepared: Prepared) -> None:
    for reference, sha in recorded.items():
        where, now = f"{prepared.spec.where}: {reference}", prepared.models.inputs.get(reference)
        if now is None:
            what = "the search started with this model, and the spec now names other paths (was the spec moved?)"
            raise LedgerError(where, what, next="Run the spec from its original folder")
        if now != sha:
            sampled = reference.startswith(SAMPLE_OF)
            changed = "tokenizer" if reference.startswith(TOKENIZER_OF) else "texts" if sampled else "weights"
            what = f"its {changed} changed since this search started (content {sha[:12]} then, {now[:12]} now)"
            raise LedgerError(where, what, next=f"Restore {'them' if sampled else 'the model'}, {OR_RENAME}")


def _check_files(
    recorded: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]], prepared: Prepared
) -> None:
    for reference, files in recorded.items():
        for file in sorted(files.keys() | now[reference].keys()):
            old, new = files.get(file), now[reference].get(file)
            if old != new:
                where = f"{prepared.spec.where}: {reference}"
                raise _changed(where, f"{file} of this model", old, new, "Restore the file")


def _check_tasks(recorded: Mapping[str, Mapping[str, str]], prepared: Prepared) -> None:
    for index, task in enumerate(prepared.suite.tasks):
        old, new = recorded[task.name], prepared.fingerprint[task.name]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                where = prepared.suite.where("tasks", index, "task")
                raise _changed(where, f"{key} of '{task.name}'", old.get(key), new.get(key), "Restore the task's file")


def _check_documents(recorded: Mapping[str, Mapping[str, str]], ledger: Ledger, prepared: Prepared) -> None:
    index = {task.name: i for i, task in enumerate(prepared.suite.tasks)}
    for split, digests in recorded.items():
        for items in prepared.batches[split].sets:
            digest = digests[items.task]
            if digest != items.digest:
                where = prepared.suite.where("tasks", index[items.task], "task")
                what = _difference(ledger.item_set(digest), items, split)
                raise LedgerError(where, what, next=f"Restore the data, {OR_RENAME}")


def _difference(then: ItemSet, now: ItemSet, split: str) -> str:
    """How the documents of one task and split differ, in words."""
    documents = f"documents of '{now.lm_eval_task}' in the {split} split"
    if (then.doc_ids, then.doc_hashes, then.documents) == (now.doc_ids, now.doc_hashes, now.documents):
        return f"the groups of the {documents} changed since this search started"
    kept = set(now.doc_hashes)
    gone = [(i, sha) for i, sha in zip(then.doc_ids, then.doc_hashes, strict=True) if sha not in kept]
    if not gone:
        return f"the order of the {documents} changed since this search started"
    first, sha = gone[0]
    return (
        f"{len(gone)} of the {len(then)} {documents} changed since this search started, or are no longer drawn "
        f"(the first was document {first}, sha256 {sha[:12]})"
    )


def _changed(where: str, what: str, old: Any, new: Any, undo: str) -> LedgerError:
    text = f"{what} changed since this search started ({_shown(old)} then, {_shown(new)} now)"
    return LedgerError(where, text, next=f"{undo}, {OR_RENAME}")


def _shown(value: Any) -> str:
    """A value in an error; digests are shortened."""
    if value is None:
        return "nothing"
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else repr(value)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data as one level: `tasks[0].weight` → its value."""
    if isinstance(node, Mapping):
        out: dict[str, Any] = {}
        for key, value in node.items():
            out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return out
    if isinstance(node, list):
        out = {}
        for index, value in enumerate(node):
            out |= _flat(value, f"{prefix}[{index}]")
        return out
    return {prefix: node}
