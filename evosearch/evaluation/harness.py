"""lm-eval behind one door: tasks loaded once, documents split, requests frozen. No other room calls lm_eval.

Loading a harness checks all that only lm-eval can tell: that the tasks exist, have the metrics and filters the suite
names, and enough documents. lm-eval itself takes seconds to import, so it is imported inside.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.fingerprint import fingerprint
from evosearch.evaluation.freezing import Freezer, LoadedTask
from evosearch.evaluation.frozen import Answers, FrozenBatch, Judged
from evosearch.evaluation.quiet import quiet
from evosearch.evaluation.splits import Draw, document_hash, split_documents
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
            self._tasks: dict[tuple[str, str], LoadedTask] = {}
            for index, spec in enumerate(suite.tasks):
                where = join(suite.where("tasks", index), "task")
                if spec.group and (spec.place, spec.group) not in members:
                    members[spec.place, spec.group] = library.members(where, spec.group)
                for name in dict.fromkeys(spec.lm_eval_task(split) for split in SPLITS):
                    own = members[spec.place, spec.group].get(name) if spec.group else library.load(where, name)
                    if own is None:
                        what = f"the group '{spec.group}' has no task '{name}' here: its YAML has changed"
                        raise SuiteError(where, what, next="Restore the group's file")
                    self._tasks[spec.name, name] = self._load(index, spec, name, own)
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
                loaded = self._tasks[items.task, items.lm_eval_task]
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
        for (name, lm_eval_name), loaded in self._tasks.items():
            prefix = "" if isinstance(loaded.spec.task, str) else f"{lm_eval_name}."
            found[name].update((prefix + key, value) for key, value in fingerprint(loaded.task).items())
        return found

    def _folders(self) -> list[str]:
        for index, folder in enumerate(self.suite.include):
            if not Path(folder).is_dir():
                raise SuiteError(self.suite.where("include", index), f"no folder {folder}", next="Check the path")
        return list(self.suite.include)

    def _load(self, index: int, spec: SuiteTask, name: str, task: Any) -> LoadedTask:
        where, options = self.suite.where("tasks", index), self.suite.prompting(spec)
        _check_kind(join(where, "task"), name, task)
        _check_role(where, name, task, spec)
        _set_options(where, name, task, spec, options)
        with refusing(join(where, "task"), f"the documents of '{name}' cannot be read"):
            documents = tuple(task.eval_docs)
            hashes = tuple(document_hash(document) for document in documents)
        _remember(task, documents)
        ensemble = _ensemble(where, name, task, spec.filter)
        return LoadedTask(spec, options, where, name, task, documents, hashes, ensemble)

    def _split(self) -> dict[str, ItemBatch]:
        pools = {name: loaded.hashes for (_, name), loaded in self._tasks.items()}
        draws = {
            spec.name: {split: Draw(spec.lm_eval_task(split), self.suite.count(spec, split)) for split in SPLITS}
            for spec in self.suite.tasks
        }
        where = {spec.name: self.suite.where("tasks", i, "documents") for i, spec in enumerate(self.suite.tasks)}
        chosen = split_documents(pools, draws, self.suite.split_seed, where)
        return {
            split: ItemBatch(
                split,
                tuple(
                    ItemSet(task, draws[task][split].pool, splits[split].doc_ids, splits[split].doc_hashes)
                    for task, splits in chosen.items()
                ),
            )
            for split in SPLITS
        }

    def _check_documents(self, items: ItemSet, loaded: LoadedTask) -> None:
        for doc_id, doc_hash in zip(items.doc_ids, items.doc_hashes, strict=True):
            if doc_id >= len(loaded.hashes) or loaded.hashes[doc_id] != doc_hash:
                what = f"document {doc_id} of '{loaded.name}' is not the one the batch names: the data have changed"
                raise SuiteError(join(loaded.where, "task"), what, next="Restore the data, or start another search")


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


def _check_role(where: str, name: str, task: Any, spec: SuiteTask) -> None:
    """The metrics that the suite names are the task's; the one that scores is an item mean, larger being better."""
    known = list(task.aggregation())
    if spec.report_only:
        _check_known(f"{where}.metric", name, [spec.metric] if spec.metric else [], known)
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        what = f"'{name}' measures perplexity, which is no item mean in [0, 1]"
        raise SuiteError(join(where, "task"), what, next="Set `report_only: true`, and remove chance and weight")
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
