"""lm-eval behind one door: tasks loaded once, documents split, requests frozen. No other room calls lm_eval.

Loading a harness checks all that only lm-eval can tell: that the tasks exist, have the metrics and filters the suite
names, and enough documents. lm-eval itself takes seconds to import, so it is imported inside.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.harness.fewshot import Kept, check_enough, example_pool
from evosearch.evaluation.harness.fingerprint import fingerprint
from evosearch.evaluation.harness.freezing import Freezer, LoadedTask
from evosearch.evaluation.harness.frozen import Answers, FrozenBatch, Judged
from evosearch.evaluation.harness.language import check_language, identifier_version
from evosearch.evaluation.harness.quiet import quiet
from evosearch.evaluation.suites.independence import check_independent
from evosearch.evaluation.suites.linked_documents import Kinship, find_kinship
from evosearch.evaluation.suites.options import check_kind, check_role, ensemble_of, set_options
from evosearch.evaluation.suites.sources import check_clean, documents_of, hub_dataset, source_of
from evosearch.evaluation.suites.splits import Draw, Selection, document_hash, split_documents
from evosearch.evaluation.suites.suite import Suite, SuiteTask
from evosearch.evaluation.suites.tasks import TaskLibrary, refusing
from evosearch.evaluation.types import SPLITS, ItemBatch, ItemSet


class Harness:
    """The tasks of one suite, loaded.

    Raises:
        SuiteError: a task, metric, filter or data file is missing, or a split is larger than its data.
    """

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        with quiet():
            library = TaskLibrary([Path(folder) for folder in self._folders()])
            members: dict[tuple[int, str], dict[str, Any]] = {}
            self._tasks: dict[tuple[str, str], LoadedTask] = {}  # by the suite's name and the pool of documents
            self._draws: dict[str, dict[str, Draw]] = {}
            for index, spec in enumerate(suite.tasks):
                where = join(suite.where("tasks", index), "task")
                if spec.group and (spec.place, spec.group) not in members:
                    members[spec.place, spec.group] = library.members(where, spec.group)
                tasks: dict[str, Any] = {}
                for name in dict.fromkeys(spec.lm_eval_task(split) for split in SPLITS):
                    own = members[spec.place, spec.group].get(name) if spec.group else library.load(where, name)
                    if own is None:
                        what = f"the group '{spec.group}' has no task '{name}' here: its YAML has changed"
                        raise SuiteError(where, what, next="Restore the group's file")
                    self._prepare(index, spec, name, own)
                    tasks[name] = own
                public = {name for name in tasks if library.is_public(name) or hub_dataset(tasks[name])}
                self._draws[spec.name] = {split: self._draw(index, spec, split, tasks, public) for split in SPLITS}
            self._check_generation_kwargs()
            self._batches = self._split()

    def batch(self, split: str) -> ItemBatch:
        """All items of a split, tasks in the suite's order."""
        return self._batches[split]

    def freeze(self, batch: ItemBatch, tokenizer: Any, max_length: int) -> FrozenBatch:
        """Requests of a batch, built and tokenized as lm-eval would for a causal model of this tokenizer.

        Args:
            max_length: the model's context length, see `max_length_of`.

        Raises:
            SuiteError: a request cannot be run (nothing to score, too long, sampling asked for), or the documents here
                are not those of the batch.
        """
        from evosearch.evaluation.harness.lm_adapter import RequestRecorder

        with quiet():
            freezer = Freezer(RequestRecorder(tokenizer, max_length), gold_required=self.suite.fitness != "score")
            for items in (items for items in batch.sets if len(items)):
                loaded = self._tasks[items.task, pool_name(items.lm_eval_task, items.documents)]
                self._check_documents(items, loaded)
                freezer.add(loaded, items)
            return freezer.freeze(batch)

    def collect(self, frozen: FrozenBatch, answers: Answers) -> dict[str, Judged]:
        """`FrozenBatch.collect` without lm-eval's log."""
        with quiet():
            return frozen.collect(answers)

    def fingerprint(self) -> dict[str, dict[str, str]]:
        """Suite task → key of its lm-eval configuration → digest of the value: what a resumed search compares.

        Of tasks that differ between splits, keys begin with the lm-eval task: `gsm8k.doc_to_text`.
        """
        found: dict[str, dict[str, str]] = {spec.name: {} for spec in self.suite.tasks}
        for (name, _), loaded in self._tasks.items():
            prefix = "" if isinstance(loaded.spec.task, str) else f"{loaded.name}."
            found[name].update((prefix + key, value) for key, value in fingerprint(loaded.task).items())
            if loaded.spec.language:
                found[name]["language"] = identifier_version()
        return found

    def _folders(self) -> list[str]:
        for index, folder in enumerate(self.suite.include):
            if not Path(folder).is_dir():
                raise SuiteError(self.suite.where("include", index), f"no folder {folder}", next="Check the path")
        return list(self.suite.include)

    def _check_generation_kwargs(self) -> None:
        if self.suite.generation_kwargs and not any(
            loaded.task.OUTPUT_TYPE == "generate_until" for loaded in self._tasks.values()
        ):
            where = self.suite.where("generation_kwargs")
            raise SuiteError(where, "no task of this suite generates anything", next="Remove this key")

    def _prepare(self, index: int, spec: SuiteTask, name: str, task: Any) -> None:
        """Check one of a suite task's lm-eval tasks, and set its options."""
        where = self.suite.where("tasks", index)
        check_kind(join(where, "task"), name, task)
        check_role(where, name, task, spec, spec in self.suite.guarded)
        set_options(where, name, task, spec, self.suite.prompting(spec))
        if spec.language is not None:
            check_language(where, spec.language, name, task)

    def _draw(self, index: int, spec: SuiteTask, split: str, tasks: Mapping[str, Any], public: Collection[str]) -> Draw:
        """What a split takes of a suite task, whose documents are loaded."""
        where, name = self.suite.where("tasks", index), spec.lm_eval_task(split)
        tuned = not spec.report_only or spec in self.suite.guarded
        if name in public and tuned and not self.suite.acknowledge_contamination:
            check_clean(where, spec, split, name, tasks[name])
        source = source_of(where, spec, split, name, tasks[name])
        pool = pool_name(name, source)
        if (spec.name, pool) not in self._tasks:
            self._tasks[spec.name, pool] = self._load(where, spec, name, tasks[name], source)
        return Draw(pool, self.suite.count(spec, split))

    def _load(self, where: str, spec: SuiteTask, name: str, task: Any, source: str) -> LoadedTask:
        with refusing(join(where, "task"), f"the documents of '{name}' cannot be read"):
            documents = tuple(documents_of(task, source))
            hashes = tuple(document_hash(document) for document in documents)
        _remember(task, documents)
        ensemble, options = ensemble_of(where, name, task, spec.filter), self.suite.prompting(spec)
        return LoadedTask(spec, options, where, name, task, documents, hashes, ensemble, source)

    def _split(self) -> dict[str, ItemBatch]:
        pools = {pool: loaded.hashes for (_, pool), loaded in self._tasks.items()}
        where = {spec.name: self.suite.where("tasks", i, "documents") for i, spec in enumerate(self.suite.tasks)}
        examples = {
            key: example_pool(loaded.where, loaded.name, loaded.task, loaded.source)
            for key, loaded in self._tasks.items()
        }
        compared = [(self._tasks[key], pool) for key, pool in examples.items() if self._tasks[key].source]
        kin = find_kinship(list(self._tasks.values()), compared, self.suite.near_duplicates)
        ties = kin.ties()
        chosen = split_documents(pools, self._draws, self.suite.split_seed, where, ties, kin.groups)
        check_independent(self.suite, chosen, ties)
        self._keep_examples(examples, chosen, ties)
        return {
            split: ItemBatch(split, tuple(self._items(task, split, chosen[task][split], kin) for task in chosen))
            for split in SPLITS
        }

    def _items(self, task: str, split: str, chosen: Selection, kin: Kinship) -> ItemSet:
        loaded = self._tasks[task, self._draws[task][split].pool]
        groups = kin.item_groups(task, chosen)
        return ItemSet(task, loaded.name, chosen.doc_ids, chosen.doc_hashes, groups, loaded.source)

    def _keep_examples(
        self,
        examples: Mapping[tuple[str, str], Sequence[Any]],
        chosen: Mapping[str, Mapping[str, Selection]],
        ties: Mapping[str, Sequence[str]],
    ) -> None:
        """Find which examples each document must not be shown: those that are it, or of another split."""
        drawn = {split: {h for own in chosen.values() for h in own[split].doc_hashes} for split in SPLITS}
        for (task, pool), shown in examples.items():
            loaded = self._tasks[task, pool]
            kept = Kept(loaded.task, loaded.source, loaded.hashes, shown, ties)
            left_out = {h: (own,) for h in loaded.hashes if (own := kept.of([h]))}
            for split in (split for split in SPLITS if self._draws[task][split].pool == pool):
                sealed = SPLITS[SPLITS.index(split) + 1 :] if kept.apart else SPLITS
                others = kept.of(set().union(*(drawn[other] for other in sealed if other != split)))
                for doc_hash in chosen[task][split].doc_hashes:
                    sets = (*left_out.get(doc_hash, ()), others)
                    check_enough(loaded.where, loaded.name, loaded.task, split, len(shown), len(sets[0].union(*sets)))
                    left_out[doc_hash] = sets
            self._tasks[task, pool] = replace(loaded, left_out=left_out)

    def _check_documents(self, items: ItemSet, loaded: LoadedTask) -> None:
        for doc_id, doc_hash in zip(items.doc_ids, items.doc_hashes, strict=True):
            if doc_id >= len(loaded.hashes) or loaded.hashes[doc_id] != doc_hash:
                what = f"document {doc_id} of '{loaded.name}' is not the one the batch names: the data have changed"
                raise SuiteError(join(loaded.where, "task"), what, next="Restore the data, or start another search")


def pool_name(lm_eval_task: str, source: str) -> str:
    """What a task's documents of one dataset split are called; those that lm-eval evaluates have the task's name."""
    return f"{lm_eval_task}[{source}]" if source else lm_eval_task


def max_length_of(config: Any, tokenizer: Any) -> int:
    """Context length in tokens that lm-eval assumes for a model of this transformers config."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(config, tokenizer))


def _remember(task: Any, documents: tuple[Any, ...]) -> None:
    """Keep what the task's templates make of each document.

    lm-eval compiles a Jinja template anew at every use (a millisecond), and `process_results` uses two or three a
    document: more than scoring a small model takes. Documents never change, so neither does what is made of them.
    """
    known = {id(document) for document in documents}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, _Memo(getattr(task, name), known))


class _Memo:
    """A function of a document, remembered for the documents that are kept alive."""

    def __init__(self, function: Any, known: set[int]) -> None:
        self._function, self._known = function, known
        self._made: dict[int, Any] = {}

    def __call__(self, document: Any, *args: Any, **kwargs: Any) -> Any:
        key = id(document)
        if args or kwargs or key not in self._known:
            return self._function(document, *args, **kwargs)
        if key not in self._made:
            self._made[key] = self._function(document)
        return copy.copy(self._made[key])  # a list that the caller may change
