"""What a search began with, held against what is there now: models, suite, tasks, documents.

Scores of one search are compared with each other, so all of them must come from the same models and questions. Whatever
decides a score and lies outside the spec is recorded by its digest when a search starts, and compared at every resume.
A record of an earlier version lacks some of it; what it lacks is not compared.
"""

import re
from collections.abc import Mapping
from typing import Any

from evosearch.checkpoints.sidecar import files_of
from evosearch.errors import LedgerError
from evosearch.evaluation.types import ItemSet
from evosearch.recipe.identity import TOKENIZER_OF
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import check_same_search, flat

NOT_IN_DIGEST = ("near_duplicates", "place")  # keys of a suite: a record that lacks them is none of another suite
DIGEST = re.compile("[0-9a-f]{16,}")
RESTORE = "or give the new search another name"


def circumstances(prepared: Prepared) -> dict[str, Any]:
    """What the `started` event records of everything outside the spec that scores depend on."""
    recipes = prepared.models.opener.nested
    return ({"recipes": recipes} if recipes else {}) | {
        "inputs": prepared.models.inputs,
        "files": {name: files_of(checkpoint) for name, checkpoint in prepared.models.checkpoints.items()},
        "suite": _suite(prepared),
        "tasks": prepared.fingerprint,
        "batches": {split: batch.digest for split, batch in prepared.batches.items()},
        "item_sets": {
            split: {items.task: items.digest for items in batch.sets} for split, batch in prepared.batches.items()
        },
    }


def refuse_other_search(ledger: Ledger, prepared: Prepared) -> SearchState | None:
    """Stop where the ledger holds another search of this name, or one that began under other circumstances.

    Returns:
        What it holds of this search, the latest of this name; None where that is nothing.

    Raises:
        LedgerError: names the first thing that differs, what it was and what it is.
    """
    spec, latest = prepared.spec, None
    for known in ledger.searches():
        if known.name != spec.name:
            continue
        state = SearchState.from_events(ledger.events(known.search_id))
        began, now = state.circumstances, circumstances(prepared)
        if state.spec["suite"]["digest"] != prepared.suite.digest():
            _check_suite(began.get("suite"), now["suite"], prepared)
        check_same_search(state.spec, spec, str(ledger.url))
        _check_near_duplicates(began.get("suite") or {}, prepared)
        _check_inputs(began.get("inputs", {}), prepared)
        _check_files(began.get("files", {}), now["files"], prepared)
        _check_tasks(began.get("tasks", {}), prepared)
        _check_documents(began, ledger, prepared)
        _check_batches(began, now["batches"], prepared)
        latest = latest or state
    return latest


def _suite(prepared: Prepared) -> dict[str, Any]:
    return prepared.suite.model_dump(mode="json", exclude={"include", "source"})


def _check_suite(recorded: Mapping[str, Any] | None, now: Mapping[str, Any], prepared: Prepared) -> None:
    """Key by key, where `suite.digest` of the spec could only say that something is not the same.

    As there, a key that the record does not know yet counts where it is set.
    """
    if recorded is None:
        return
    old, new = flat(recorded), flat(now)
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in old and (not new[key] or key.rpartition(".")[2] in NOT_IN_DIGEST):
            continue
        if old.get(key) != new.get(key):
            raise _changed(f"{prepared.suite.source}: {key}", "it", old.get(key), new.get(key), "Undo the change")


def _check_near_duplicates(recorded: Mapping[str, Any], prepared: Prepared) -> None:
    """It decides which examples a prompt shows, too: equal item sets do not yet make it the same."""
    now = prepared.suite.near_duplicates
    then = recorded.get("near_duplicates", now)
    if then != now:
        raise _changed(f"{prepared.suite.source}: near_duplicates", "it", then, now, "Undo the change")


def _check_inputs(recorded: Mapping[str, str], prepared: Prepared) -> None:
    for reference, sha in recorded.items():
        where, now = f"{prepared.spec.where}: {reference}", prepared.models.inputs.get(reference)
        if now is None:
            what = "this search began with it, and the spec now names other places (was the spec moved?)"
            raise LedgerError(where, what, next="Run the spec from where it was")
        if now != sha:
            part = "tokenizer" if reference.startswith(TOKENIZER_OF) else "weights"
            what = f"its {part} changed since this search began (content {sha[:12]} then, {now[:12]} now)"
            raise LedgerError(where, what, next=f"Restore the model, {RESTORE}")


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
        old, new = recorded.get(task.name), prepared.fingerprint.get(task.name, {})
        if old is None:
            continue
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                where = prepared.suite.where("tasks", index, "task")
                raise _changed(where, f"{key} of '{task.name}'", old.get(key), new.get(key), "Restore the task's file")


def _check_documents(began: Mapping[str, Any], ledger: Ledger, prepared: Prepared) -> None:
    recorded: Mapping[str, Mapping[str, str]] = began.get("item_sets", {})
    index = {task.name: i for i, task in enumerate(prepared.suite.tasks)}
    for split, digests in recorded.items():
        for items in prepared.batches[split].sets:
            then = digests.get(items.task, items.digest)
            if then != items.digest:
                where = prepared.suite.where("tasks", index[items.task], "task")
                what = _difference(ledger.item_set(then), items, split)
                reason, undo = _why(began, prepared)
                raise LedgerError(where, what + reason, next=f"{undo}, {RESTORE}")


def _why(began: Mapping[str, Any], prepared: Prepared) -> tuple[str, str]:
    """What explains that other documents are drawn, for the end of a sentence, and how to undo it."""
    suite, now = prepared.suite, prepared.suite.near_duplicates
    recorded = began.get("suite") or {}
    if "near_duplicates" not in recorded and now is not False:
        reason = f". It began before near-duplicates were looked for, and near_duplicates is {now:g} now"
        return reason, f"To go on with the documents it began with, set near_duplicates: false in {suite.source}"
    return "", "Restore the data"


def _difference(then: ItemSet, now: ItemSet, split: str) -> str:
    """How the documents of one task and split differ, in words."""
    kept = set(now.doc_hashes)
    gone = [(i, sha) for i, sha in zip(then.doc_ids, then.doc_hashes, strict=True) if sha not in kept]
    if (then.doc_ids, then.doc_hashes, then.documents) == (now.doc_ids, now.doc_hashes, now.documents):
        grouped = "are grouped otherwise than when this search began"
        return f"the documents of '{now.lm_eval_task}' for the {split} split {grouped}"
    if not gone:
        return f"the documents of '{now.lm_eval_task}' stand in another order than when this search began"
    first, sha = gone[0]
    return (
        f"{len(gone)} of the {len(then)} documents of '{now.lm_eval_task}' for the {split} split changed since this "
        f"search began, or are no longer drawn (the first was document {first}, sha256 {sha[:12]})"
    )


def _check_batches(began: Mapping[str, Any], now: Mapping[str, str], prepared: Prepared) -> None:
    """What is left to say of a record without item sets."""
    recorded: Mapping[str, str] = began.get("batches", {})
    for split, digest in recorded.items():
        if digest != now[split]:
            reason, undo = _why(began, prepared)
            what = f"the documents of the {split} split"
            raise _changed(prepared.suite.source, what, digest, now[split], undo, reason)


def _changed(where: str, what: str, old: Any, new: Any, undo: str, reason: str = "") -> LedgerError:
    text = f"{what} changed since this search began ({_shown(old)} then, {_shown(new)} now){reason}"
    return LedgerError(where, text, next=f"{undo}, {RESTORE}")


def _shown(value: Any) -> str:
    """A digest by its start; nothing as such."""
    if value is None:
        return "nothing"
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else repr(value)
