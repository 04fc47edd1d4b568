"""lm-eval behind one door: tasks loaded once, documents split, requests frozen. Nothing else calls lm_eval.

Loading a harness checks all that only lm-eval can tell: that the tasks exist, have the metrics and filters the suite
names, and enough documents. lm-eval itself takes seconds to import, so it is imported inside.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.freezing import Freezer, LoadedTask
from evosearch.evaluation.frozen import Answers, FrozenBatch
from evosearch.evaluation.library import library_files
from evosearch.evaluation.splits import Draw, document_hash, split_documents
from evosearch.evaluation.suite import Suite, SuiteTask
from evosearch.evaluation.types import SPLITS, Column, ItemBatch, ItemSet

_LOGGERS = ("lm_eval", "datasets", "transformers")
_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until")


class Harness:
    """The tasks of one suite, loaded.

    Raises:
        SuiteError: a task, metric, filter or data file is missing, or a split is larger than its data.
    """

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        with _quiet():
            self._manager = _manager([Path(folder) for folder in self._folders()])
            self._tasks = {
                (spec.name, name): self._load(index, spec, name)
                for index, spec in enumerate(suite.tasks)
                for name in dict.fromkeys(spec.lm_eval_task(split) for split in SPLITS)
            }
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

        with _quiet():
            freezer = Freezer(RequestRecorder(tokenizer, max_length), gold_required=self.suite.fitness != "score")
            for items in (items for items in batch.sets if len(items)):
                loaded = self._tasks[items.task, items.lm_eval_task]
                self._check_documents(items, loaded)
                freezer.add(loaded, items)
            return freezer.freeze(batch)

    def collect(self, frozen: FrozenBatch, answers: Answers) -> dict[str, dict[str, Column]]:
        """`FrozenBatch.collect` without lm-eval's log."""
        with _quiet():
            return frozen.collect(answers)

    def _folders(self) -> list[str]:
        for index, folder in enumerate(self.suite.include):
            if not Path(folder).is_dir():
                raise SuiteError(self.suite.where("include", index), f"no folder {folder}", next="Check the path")
        return list(self.suite.include)

    def _load(self, index: int, spec: SuiteTask, name: str) -> LoadedTask:
        where = self.suite.where("tasks", index)
        task = self._build(join(where, "task"), name)
        _check_kind(join(where, "task"), name, task)
        _check_metric(join(where, "metric"), name, task, spec.metric)
        _set_shots(join(where, "num_fewshot"), name, task, spec.num_fewshot)
        with _refusing(join(where, "task"), f"the documents of '{name}' cannot be read"):
            documents = tuple(task.eval_docs)
            hashes = tuple(document_hash(document) for document in documents)
        _remember(task, documents)
        return LoadedTask(spec, where, name, task, documents, hashes, _ensemble(where, name, task, spec.filter))

    def _build(self, where: str, name: str) -> Any:
        """The lm-eval task object."""
        manager = self._manager
        if name not in manager.task_index:
            library = library_files()
            if name not in library:
                known = sorted(manager.all_subtasks)
                allowed = f"Tasks of the include folders: {', '.join(known[:20]) or 'none'}"
                raise SuiteError(where, f"unknown task '{name}'", allowed, did_you_mean(name, [*known, *library]))
            manager = _manager([library[name].parent])
        if name not in manager.all_subtasks:
            members = "Name the tasks one by one, each with its metric and chance level"
            raise SuiteError(where, f"'{name}' is a group or tag of lm-eval, not a task", next=members)
        entry = manager.task_index[name]
        spec = _with_data_files(where, name, entry)
        with _refusing(where, f"lm-eval cannot load '{name}'"):
            return manager.load([spec])["tasks"][name]

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


@contextmanager
def _refusing(where: str, what: str) -> Iterator[None]:
    """Whatever lm-eval or a task's own code raises, as a SuiteError that names the key."""
    try:
        yield
    except SuiteError:
        raise
    except Exception as exc:
        reason = next((line for line in str(exc).splitlines() if line.strip()), "")
        raise SuiteError(where, f"{what}: {type(exc).__name__}: {reason}") from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets log at length and draw bars; what matters of it is raised."""
    import datasets

    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars = datasets.utils.are_progress_bars_disabled()
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _manager(folders: list[Path]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folders, include_defaults=False)


def _with_data_files(where: str, name: str, entry: Any) -> Any:
    """What to ask lm-eval for: the name, or, where data files lie beside the YAML, the config with their full paths.

    lm-eval takes relative `data_files` from the working directory, which differs between a person's shell and a worker.
    """
    config = entry.cfg or {}
    named = (config.get("dataset_kwargs") or {}).get("data_files") if config.get("dataset_path") else None
    if named is None or entry.yaml_path is None:
        return name
    placed = {}
    for split, files in (named if isinstance(named, dict) else {"train": named}).items():
        paths = [
            _data_file(where, name, entry.yaml_path, file) for file in ([files] if isinstance(files, str) else files)
        ]
        placed[split] = paths[0] if isinstance(files, str) else paths
    if placed == named:
        return name
    from lm_eval.tasks._yaml_loader import load_yaml

    with _refusing(where, f"lm-eval cannot load '{name}'"):
        full: dict[str, Any] = load_yaml(entry.yaml_path, resolve_func=True)
    files = placed if isinstance(named, dict) else placed["train"]
    return {**full, "dataset_kwargs": {**full["dataset_kwargs"], "data_files": files}}


def _data_file(where: str, name: str, yaml_path: Path, file: str) -> str:
    if "://" in file or any(sign in file for sign in "*?["):
        return file  # a remote file or a pattern: for datasets to resolve
    beside = yaml_path.parent / file
    if Path(file).exists():
        return file
    if beside.exists():
        return str(beside)
    raise SuiteError(where, f"the data file {file} of '{name}' is missing", f"Looked here and in {yaml_path.parent}")


def _check_kind(where: str, name: str, task: Any) -> None:
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES:
        what = f"'{name}' has the output type {task.OUTPUT_TYPE}, which has no item mean"
        raise SuiteError(where, what, f"Output types: {', '.join(_OUTPUT_TYPES)}")
    if getattr(task, "UNSAFE_CODE", False):
        raise SuiteError(where, f"'{name}' runs code that models write; evosearch has no sandbox for it")
    if getattr(task, "MULTIMODAL", False):
        raise SuiteError(where, f"'{name}' needs images or audio", "Text tasks only")


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


def _set_shots(where: str, name: str, task: Any, asked: int | None) -> None:
    own = task.config.num_fewshot
    if asked and own == 0:  # lm-eval never overrides a zero, so its command line could not confirm our scores
        raise SuiteError(where, f"'{name}' fixes num_fewshot at 0", next="Remove it from the task's YAML or from here")
    task.set_config(key="num_fewshot", value=asked if asked is not None else own or 0)


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
