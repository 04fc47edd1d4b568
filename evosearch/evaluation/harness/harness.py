"""Loading of a suite's tasks by lm-eval, assignment of their documents to splits, and freezing of requests.

Constructing a `Harness` checks everything that requires lm-eval: the tasks exist, have the suite's metrics and filters,
and have enough documents. lm-eval takes seconds to import, so it is imported lazily.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import CheckpointError, SuiteError
from evosearch.evaluation.harness.document_texts import DocumentText, text_of
from evosearch.evaluation.harness.fewshot import ExampleIndex, check_enough, example_pool
from evosearch.evaluation.harness.fingerprint import fingerprint
from evosearch.evaluation.harness.freezing import Freezer, place_of
from evosearch.evaluation.harness.frozen import Answers, FrozenBatch, TaskResult
from evosearch.evaluation.harness.gold import check_choices
from evosearch.evaluation.harness.language import check_language, identifier_version
from evosearch.evaluation.harness.template_cache import cache_templates
from evosearch.evaluation.suites.independence import check_independent
from evosearch.evaluation.suites.linked_documents import LinkedDocuments, link_documents
from evosearch.evaluation.suites.lm_eval_logs import quiet
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.suites.options import check_kind, check_role, ensemble_of, set_options
from evosearch.evaluation.suites.prompt_tasks import prompt_task
from evosearch.evaluation.suites.sources import check_clean, documents_of, hub_dataset, source_of
from evosearch.evaluation.suites.splits import Draw, Selection, document_hash, split_documents
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.suites.tasks import TaskLibrary, wrap_errors
from evosearch.evaluation.types import SPLITS, FitnessKind, ItemBatch, ItemSet
from evosearch.untrusted import boundary


class Harness:
    """The loaded tasks of one suite, with their documents assigned to splits.

    Raises:
        SuiteError: A task, metric, filter or data file is missing, or a split requests more documents than exist.
    """

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        with quiet():
            library = TaskLibrary([Path(folder) for folder in self._folders()])
            members: dict[tuple[int, str], dict[str, Any]] = {}
            self._tasks: dict[tuple[str, str], LoadedTask] = {}  # by suite name and pool of documents
            self._draws: dict[str, dict[str, Draw]] = {}
            for index, spec in enumerate(suite.tasks):
                where = join(suite.where("tasks", index), "task")
                if spec.group and (spec.place, spec.group) not in members:
                    members[spec.place, spec.group] = library.members(where, spec.group)
                tasks: dict[str, Any] = {}
                for name in dict.fromkeys(spec.lm_eval_task(split) for split in SPLITS):
                    own = members.get((spec.place, spec.group), {}).get(name)
                    own = own if spec.group else self._load_task(library, index, name)
                    if own is None:
                        what = f"the group '{spec.group}' no longer has a task '{name}': its YAML has changed"
                        raise SuiteError(where, what, next="Restore the group's file")
                    self._prepare(index, spec, name, own)
                    tasks[name] = own
                public = {name for name in tasks if library.is_public(name) or hub_dataset(tasks[name])}
                public = set() if spec.prompts else public
                self._draws[spec.name] = {split: self._draw(index, spec, split, tasks, public) for split in SPLITS}
            self._check_generation_kwargs()
            self._batches = self._split()

    @property
    def loaded(self) -> tuple[LoadedTask, ...]:
        """The loaded lm-eval tasks of all suite tasks and pools of documents."""
        return tuple(self._tasks.values())

    def batch(self, split: str) -> ItemBatch:
        """Return all items of a split, with tasks in the suite's order."""
        return self._batches[split]

    def freeze(
        self, batch: ItemBatch, tokenizer: Any, max_length: int, fitness: FitnessKind | None = None
    ) -> FrozenBatch:
        """Build and tokenize the requests of a batch as lm-eval would for a causal model with this tokenizer.

        Args:
            batch: The items to freeze.
            tokenizer: The models' transformers tokenizer.
            max_length: The models' context length in tokens, see `max_length_of`.
            fitness: Kind of fitness to read right answers for; None for the suite's.

        Raises:
            SuiteError: A request is unsupported (empty, too long, or with sampling), or the documents on this machine
                differ from the batch's.
            CheckpointError: The tokenizer or its chat template cannot be used.
        """
        from evosearch.evaluation.harness.lm_adapter import RequestRecorder

        with quiet(), closing(RequestRecorder(tokenizer, max_length)) as recorder:
            freezer = Freezer(recorder, fitness or self.suite.told)
            for items in (items for items in batch.sets if len(items)):
                loaded = self._tasks[items.task, pool_name(items.lm_eval_task, items.documents)]
                self._check_documents(items, loaded)
                freezer.add(loaded, items, self.suite.reads_answers(loaded.spec, batch.split))
            return freezer.freeze(batch)

    def prompts(self, task: str, split: str, count: int, tokenizer: Any, max_length: int) -> list[tuple[int, ...]]:
        """Return the tokens of the first prompts of a task, as models are asked them; no right answers are read.

        Args:
            task: Name of the suite's task.
            split: The split.
            count: Number of documents, at most.
            tokenizer: The models' transformers tokenizer.
            max_length: The models' context length in tokens.

        Raises:
            SuiteError: lm-eval cannot build a prompt.
            CheckpointError: The tokenizer or its chat template cannot be used.
        """
        from evosearch.evaluation.harness.lm_adapter import RequestRecorder

        (items,) = (own for own in self.batch(split).sets if own.task == task)
        loaded = self._tasks[task, pool_name(items.lm_eval_task, items.documents)]
        with quiet(), closing(RequestRecorder(tokenizer, max_length)) as recorder:
            freezer = Freezer(recorder, self.suite.told)
            pairs = zip(items.doc_ids[:count], items.doc_hashes[:count], strict=True)
            return [freezer.prompt(loaded, doc_id, doc_hash) for doc_id, doc_hash in pairs]

    def texts(self, items: ItemSet) -> list[DocumentText]:
        """Return the documents of an item set of this suite in words, for people who compare answers.

        Raises:
            SuiteError: lm-eval cannot show a document, or the documents on this machine differ from the item set's.
        """
        loaded = self._tasks[items.task, pool_name(items.lm_eval_task, items.documents)]
        self._check_documents(items, loaded)
        with quiet():
            return [text_of(loaded, doc_id) for doc_id in items.doc_ids]

    def check_answers(self) -> None:
        """Check the choices of all items, and their right answers where these are read; `freeze` does so too.

        Raises:
            SuiteError: A document has too few choices, or its right answer is not among them.
        """
        for split in SPLITS:
            for items in self.batch(split).sets:
                loaded = self._tasks[items.task, pool_name(items.lm_eval_task, items.documents)]
                answers = self.suite.reads_answers(loaded.spec, split)
                for doc_id in items.doc_ids if answers else ():
                    where = place_of(loaded, doc_id)
                    with wrap_errors(where, "lm-eval cannot read its choices"):
                        check_choices(where, loaded.task, loaded.documents[doc_id], answers)

    def collect(self, frozen: FrozenBatch, answers: Answers) -> dict[str, TaskResult]:
        """Run `FrozenBatch.collect` without lm-eval's logs."""
        with quiet():
            return frozen.collect(answers)

    def fingerprint(self) -> dict[str, dict[str, str]]:
        """Return suite task → key of its lm-eval configuration → digest; compared when a search is resumed.

        If a suite task has different lm-eval tasks by split, keys are prefixed by the lm-eval task's name, as in
        `gsm8k.doc_to_text`.
        """
        found: dict[str, dict[str, str]] = {spec.name: {} for spec in self.suite.tasks}
        for (name, _), loaded in self._tasks.items():
            prefix = "" if isinstance(loaded.spec.task, str) else f"{loaded.name}."
            found[name].update((prefix + key, value) for key, value in fingerprint(loaded.task).items())
            if loaded.spec.language:
                found[name]["language"] = identifier_version()
        return found

    def _load_task(self, library: TaskLibrary, index: int, name: str) -> Any:
        """Load one lm-eval task of a suite task, without right answers if no split reads them."""
        spec = self.suite.tasks[index]
        if spec.prompts is not None:
            return prompt_task(self.suite.where("tasks", index, "prompts"), name, spec.prompts)
        splits = [split for split in SPLITS if spec.lm_eval_task(split) == name]
        answers = any(self.suite.reads_answers(spec, split) for split in splits)
        return library.load(join(self.suite.where("tasks", index), "task"), name, answers=answers)

    def _folders(self) -> list[str]:
        for index, folder in enumerate(self.suite.include):
            if not Path(folder).is_dir():
                raise SuiteError(
                    self.suite.where("include", index), f"folder {folder} not found", next="Check the path"
                )
        return list(self.suite.include)

    def _check_generation_kwargs(self) -> None:
        if self.suite.generation_kwargs and not any(
            loaded.task.OUTPUT_TYPE == "generate_until" for loaded in self._tasks.values()
        ):
            where = self.suite.where("generation_kwargs")
            raise SuiteError(where, "no task of this suite generates text", next="Remove this key")

    def _prepare(self, index: int, spec: SuiteTask, name: str, task: Any) -> None:
        """Check one lm-eval task of a suite task and set its options."""
        where = self.suite.where("tasks", index)
        check_kind(join(where, "task"), name, task)
        if spec.labelled:
            check_role(where, name, task, spec, spec in self.suite.guarded)
        set_options(where, name, task, spec, self.suite.prompting(spec))
        if spec.language is not None:
            check_language(where, spec.language, name, task)

    def _draw(self, index: int, spec: SuiteTask, split: str, tasks: Mapping[str, Any], public: Collection[str]) -> Draw:
        """Load the documents that a split draws from; return its pool and number of documents."""
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
        with wrap_errors(join(where, "task"), f"cannot read the documents of '{name}'"):
            documents = tuple(documents_of(task, source))
            hashes = tuple(document_hash(document) for document in documents)
        cache_templates(task, documents)
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
        linked = link_documents(list(self._tasks.values()), compared, self.suite.near_duplicates)
        links = linked.links()
        chosen = split_documents(pools, self._draws, self.suite.split_seed, where, links, linked.groups)
        check_independent(self.suite, chosen, links)
        self._exclude_examples(examples, chosen, links)
        return {
            split: ItemBatch(split, tuple(self._items(task, split, chosen[task][split], linked) for task in chosen))
            for split in SPLITS
        }

    def _items(self, task: str, split: str, chosen: Selection, linked: LinkedDocuments) -> ItemSet:
        loaded = self._tasks[task, self._draws[task][split].pool]
        groups = linked.item_groups(task, chosen)
        return ItemSet(task, loaded.name, chosen.doc_ids, chosen.doc_hashes, groups, loaded.source)

    def _exclude_examples(
        self,
        examples: Mapping[tuple[str, str], Sequence[Any]],
        chosen: Mapping[str, Mapping[str, Selection]],
        links: Mapping[str, Sequence[str]],
    ) -> None:
        """Exclude from each document's prompt the examples linked to it or to documents of other splits."""
        drawn = {split: {h for own in chosen.values() for h in own[split].doc_hashes} for split in SPLITS}
        for (task, pool), shown in examples.items():
            loaded = self._tasks[task, pool]
            index = ExampleIndex(loaded.task, loaded.source, loaded.hashes, shown, links)
            excluded = {h: (own,) for h in loaded.hashes if (own := index.positions([h]))}
            for split in (split for split in SPLITS if self._draws[task][split].pool == pool):
                sealed = SPLITS[SPLITS.index(split) + 1 :] if index.separate else SPLITS
                others = index.positions(set().union(*(drawn[other] for other in sealed if other != split)))
                for doc_hash in chosen[task][split].doc_hashes:
                    sets = (*excluded.get(doc_hash, ()), others)
                    check_enough(loaded.where, loaded.name, loaded.task, split, len(shown), len(sets[0].union(*sets)))
                    excluded[doc_hash] = sets
            self._tasks[task, pool] = replace(loaded, excluded=excluded)

    def _check_documents(self, items: ItemSet, loaded: LoadedTask) -> None:
        for doc_id, doc_hash in zip(items.doc_ids, items.doc_hashes, strict=True):
            if doc_id >= len(loaded.hashes) or loaded.hashes[doc_id] != doc_hash:
                what = f"document {doc_id} of '{loaded.name}' differs from the batch's: the data have changed"
                raise SuiteError(join(loaded.where, "task"), what, next="Restore the data, or start another search")


def pool_name(lm_eval_task: str, source: str) -> str:
    """Return the name of a pool: a task's documents of one dataset split. The evaluated split has no suffix."""
    return f"{lm_eval_task}[{source}]" if source else lm_eval_task


def max_length_of(config: Any, tokenizer: Any) -> int:
    """Return the context length in tokens that lm-eval assumes for a model with this transformers config.

    Raises:
        CheckpointError: It is not a number of at least 2.
    """
    from lm_eval.models.utils import resolve_max_length

    where = str(getattr(config, "name_or_path", "") or getattr(tokenizer, "name_or_path", "") or "model")
    with boundary(where, CheckpointError, "has no usable context length"):
        length = int(resolve_max_length(config, tokenizer))
    if length < 2:
        what = f"its context length is {length} tokens"
        next = "Correct max_position_embeddings in config.json, or model_max_length in tokenizer_config.json"
        raise CheckpointError(where, what, "At least 2", next)
    return length
