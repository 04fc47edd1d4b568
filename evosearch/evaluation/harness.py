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
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.examples import example_pool, own_examples
from evosearch.evaluation.fingerprint import fingerprint
from evosearch.evaluation.freezing import Freezer, LoadedTask
from evosearch.evaluation.frozen import Answers, FrozenBatch, Judged
from evosearch.evaluation.kinship import Kinship, find_kinship
from evosearch.evaluation.language import check_language, identifier_version
from evosearch.evaluation.quiet import quiet
from evosearch.evaluation.sources import check_clean, documents_of, source_of
from evosearch.evaluation.splits import Draw, Selection, document_hash, split_documents
from evosearch.evaluation.suite import PromptOptions, Suite, SuiteTask
from evosearch.evaluation.tasks import TaskLibrary, refusing
from evosearch.evaluation.types import SPLITS, ItemBatch, ItemSet

_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until", "loglikelihood_rolling")


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
                public = {name for name in tasks if library.is_public(name)}
                self._draws[spec.name] = {split: self._draw(index, spec, split, tasks, public) for split in SPLITS}
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
        from evosearch.evaluation.lm_adapter import RequestRecorder

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

    def _prepare(self, index: int, spec: SuiteTask, name: str, task: Any) -> None:
        """Check one of a suite task's lm-eval tasks, and set its options."""
        where, options = self.suite.where("tasks", index), self.suite.prompting(spec)
        _check_kind(join(where, "task"), name, task)
        _check_role(where, name, task, spec, spec in self.suite.guarded)
        _set_options(where, name, task, spec, options)
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
        ensemble, options = _ensemble(where, name, task, spec.filter), self.suite.prompting(spec)
        return LoadedTask(spec, options, where, name, task, documents, hashes, ensemble, source)

    def _split(self) -> dict[str, ItemBatch]:
        pools = {pool: loaded.hashes for (_, pool), loaded in self._tasks.items()}
        where = {spec.name: self.suite.where("tasks", i, "documents") for i, spec in enumerate(self.suite.tasks)}
        kin = self._kinship()
        chosen = split_documents(pools, self._draws, self.suite.split_seed, where, kin.ties(), kin.groups)
        return {
            split: ItemBatch(split, tuple(self._items(task, split, chosen[task][split], kin) for task in chosen))
            for split in SPLITS
        }

    def _items(self, task: str, split: str, chosen: Selection, kin: Kinship) -> ItemSet:
        loaded = self._tasks[task, self._draws[task][split].pool]
        groups = kin.item_groups(task, chosen)
        return ItemSet(task, loaded.name, chosen.doc_ids, chosen.doc_hashes, groups, loaded.source)

    def _kinship(self) -> Kinship:
        """What ties documents together; and with it, which examples each document must not be shown."""
        examples = {
            key: example_pool(loaded.where, loaded.name, loaded.task)
            for key, loaded in self._tasks.items()
            if loaded.source
        }
        pools = [(self._tasks[key], pool) for key, pool in examples.items()]
        kin = find_kinship(list(self._tasks.values()), pools, self.suite.near_duplicates)
        for key, pool in examples.items():
            loaded = self._tasks[key]
            twins = own_examples(loaded.task, loaded.source, loaded.hashes, pool, kin.clusters)
            self._tasks[key] = replace(loaded, twins=twins)
        return kin

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


def _check_kind(where: str, name: str, task: Any) -> None:
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES:
        what = f"'{name}' has the unknown output type {task.OUTPUT_TYPE}"
        raise SuiteError(where, what, f"Output types: {', '.join(_OUTPUT_TYPES)}")
    if getattr(task, "UNSAFE_CODE", False):
        raise SuiteError(where, f"'{name}' runs code that models write; evosearch has no sandbox for it")
    if getattr(task, "MULTIMODAL", False):
        raise SuiteError(where, f"'{name}' needs images or audio", "Text tasks only")


def _check_role(where: str, name: str, task: Any, spec: SuiteTask, guarded: bool) -> None:
    """The metrics that the suite names are the task's; one that scores or is guarded is an item mean, larger better."""
    known = list(task.aggregation())
    if spec.report_only and not guarded:
        _check_known(f"{where}.metric", name, [spec.metric] if spec.metric else [], known)
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        what = f"'{name}' measures perplexity, which is no item mean in [0, 1]"
        next = "Set `report_only: true`, and remove chance and weight"
        raise SuiteError(join(where, "task"), what, next="Guard another task" if spec.report_only else next)
    else:
        _check_metric(f"{where}.metric", name, task, spec.metric)
    _check_known(f"{where}.metrics", name, spec.metrics or (), known)


def _check_known(where: str, name: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for metric in asked:
        if metric not in known:
            allowed = f"Metrics of '{name}': {', '.join(known) or 'none'}"
            raise SuiteError(where, f"'{name}' has no metric '{metric}'", allowed, did_you_mean(metric, known))


def _check_metric(where: str, name: str, task: Any, metric: str) -> None:
    from lm_eval.api.metrics import mean

    means = [known for known, how in task.aggregation().items() if how is mean]
    if metric not in task.aggregation():
        allowed = f"Item means of '{name}': {', '.join(means) or 'none'}"
        raise SuiteError(where, f"'{name}' has no metric '{metric}'", allowed, did_you_mean(metric, means))
    if metric not in means:
        what = f"'{metric}' of '{name}' is not the mean of one number a document"
        raise SuiteError(where, what, f"Item means of '{name}': {', '.join(means) or 'none'}")
    if not task.higher_is_better().get(metric, True):
        raise SuiteError(where, f"smaller is better for '{metric}' of '{name}'", "Larger must be better")


def _ensemble(where: str, name: str, task: Any, asked: str | None) -> Any:
    known = {ensemble.name: ensemble for ensemble in task._filters}
    if asked is None:
        return next(iter(known.values()))
    if asked not in known:
        allowed = f"Filters of '{name}': {', '.join(known)}"
        raise SuiteError(
            join(where, "filter"), f"'{name}' has no filter '{asked}'", allowed, did_you_mean(asked, known)
        )
    return known[asked]


def _set_options(where: str, name: str, task: Any, spec: SuiteTask, options: PromptOptions) -> None:
    """Shots and generation arguments as `lm_eval --num_fewshot --gen_kwargs` would set them."""
    own = task.config.num_fewshot
    if spec.num_fewshot and own == 0:  # lm-eval never overrides a zero: its command line could not confirm it
        what = f"'{name}' fixes num_fewshot at 0"
        raise SuiteError(f"{where}.num_fewshot", what, next="Remove it from the task's YAML or from here")
    asked = own if own == 0 and spec.num_fewshot is None else options.num_fewshot
    task.set_config(key="num_fewshot", value=asked if asked is not None else own or 0)
    if task.OUTPUT_TYPE == "generate_until":
        if options.generation_kwargs:
            kwargs = {**(task.config.generation_kwargs or {}), **copy.deepcopy(options.generation_kwargs)}
            task.set_config(key="generation_kwargs", value=kwargs)
    elif spec.generation_kwargs:
        what = f"'{name}' generates nothing: its output type is {task.OUTPUT_TYPE}"
        raise SuiteError(f"{where}.generation_kwargs", what, next="Remove this key")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        for key in ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction"):
            if getattr(spec, key):
                what = f"'{name}' has no prompt: it scores whole texts"
                raise SuiteError(f"{where}.{key}", what, next="Remove this key")


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
