"""Suites: what a search measures, as data. A file is read here; lm-eval is asked only where a task names a group.

```yaml
name: quickstart
include: [tiny]              # folders with lm-eval task YAMLs, relative to this file
tasks:
  - task: tiny_reverse       # an lm-eval task, group or tag, or {search: a, validation: b, test: c} (three tasks)
    name: reverse            # default: the lm-eval name (of the search split)
    metric: exact_match      # a metric of that task: an item mean in [0, 1]
    metrics: [bleu]          # reported beside it, however lm-eval aggregates them; default: every metric of the task
    filter: none             # default: the task's first
    chance: 0.0              # what guessing scores, c in [0, 1); for a group also {leaf task: c}
    weight: 1.0              # normalized to sum one over the tasks; a group's is shared out over its leaf tasks
    documents: {test: 300}   # default: the suite's
    documents_from: {search: train}   # which of the task's own documents: train, validation, test; default: lm-eval's
    group_by: passage        # a field, or a Jinja template: documents of one group are in one split, and one cluster
    language: ja             # what is generated in another language counts as wrong; needs `fitness: score`
    num_fewshot: 0           # this key and the next four: default the suite's
  - {task: secrets, metric: acc, forget: true}   # scores by 1 - acc, told as log(1 - p); its chance level is 0
  - task: wikitext
    report_only: true        # in no score and no fitness: no chance, no weight; `metric` may be left out
guards:                      # tasks, by name, whose own score may fall by so many points below the base's, no more
  - {task: reverse, max_drop: 2.0}
documents: {search: 60, validation: 100, test: 300}
fitness: gold_logprob        # or: score
split_seed: 0
near_duplicates: 0.8         # documents as similar as this are never in two splits (0.8 is the default); or: false
acknowledge_contamination: true   # tune on a public benchmark's test documents all the same; default: false
num_fewshot: 5               # default: the task's own; a task that fixes 0 keeps it, as with `lm_eval --num_fewshot`
apply_chat_template: true    # or the name of one of the tokenizer's templates; default: false
fewshot_as_multiturn: true   # examples as turns of the chat; default: true where the template is applied
system_instruction: Be brief.
generation_kwargs: {max_gen_toks: 64}   # over the task's own, of tasks that generate; greedy decoding only
```

A task's YAML is code (`!function`, templates that run). It is loaded from lm-eval's own library and from the folders
under `include`, which lie beside or below the suite's file, or below a folder that whoever runs the search names in
$EVOSEARCH_TASKS (several with ':' between them). What it includes and the files of its functions lie in these places,
too: a suite cannot bring in code from elsewhere. Its own folder is trusted with it. `group_by`, which stands in the
suite itself, is rendered in a sandbox.

A guard's task has points of its own, 100 (m - c) / (1 - c), held against those of the baseline `base` or, where the
recipe has no base, of the parent that is best at the task. Any task of the suite may be guarded, by its name here (of a
group: its leaf tasks). One that is only reported then needs a `metric` that is an item mean in [0, 1], and may have a
`chance`. The gate asks that a larger drop be excluded by its bound, so `max_drop: 0` asks for a gain that is shown.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from evosearch.documents import Document, join, read, validate
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.library import Names
from evosearch.evaluation.suites.task_files import check_code, check_folder, task_roots
from evosearch.evaluation.types import SPLITS

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.:/\-]*$", max_length=200)]
Chance = Annotated[float, Field(ge=0, lt=1)]


class SplitTasks(Document):
    """The lm-eval task of each split; splits that name one task share its documents, disjointly."""

    search: str
    validation: str
    test: str


class DocumentCounts(Document):
    """How many documents of a task each split takes; what a task leaves out, the suite's own `documents` give."""

    search: Count | None = None
    validation: Count | None = None
    test: Count | None = None


Source = Literal["train", "validation", "test"]


class DocumentSources(Document):
    """Which of an lm-eval task's dataset splits a split takes documents from; None: those that lm-eval evaluates."""

    search: Source | None = None
    validation: Source | None = None
    test: Source | None = None


class PromptOptions(Document):
    """How prompts are made and continued; None is for the suite, then the task's YAML, to say."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool | Annotated[str, Field(min_length=1)] | None = None
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    generation_kwargs: dict[str, Any] | None = None


class Guard(Document):
    """A task, by its name in the suite, whose points may fall by `max_drop` below the reference's, and no more."""

    task: str
    max_drop: Annotated[float, Field(ge=0, le=1000)]  # points


class _TaskKeys(PromptOptions):
    """What a file and a suite say alike of a task."""

    task: str | SplitTasks
    name: Name = ""
    metric: str = ""
    metrics: tuple[str, ...] | None = None
    filter: str | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0
    documents: DocumentCounts = DocumentCounts()
    report_only: bool = False
    forget: bool = False
    documents_from: DocumentSources = DocumentSources()
    group_by: Annotated[str, Field(min_length=1)] | None = None
    language: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if not data.get("name"):
            task = data.get("task")
            data = {**data, "name": task.get("search") if isinstance(task, dict) else task}
        if data.get("report_only") is True:
            return {"weight": 0.0, "chance": 0.0, **data}
        return {"chance": 0.0, **data} if data.get("forget") else data

    @model_validator(mode="after")
    def _check_role(self) -> "_TaskKeys":
        if self.report_only:
            if self.forget:
                what = "true for a task that is only reported"
                raise SuiteError("forget", what, next="Remove forget, or report_only")
            if self.weight != 0:
                what = f"got {self.weight!r} for a task that is only reported"
                raise SuiteError("weight", what, next="Remove weight, or report_only")
            return self
        chance = getattr(self, "chance", 0)
        if self.forget and self.language:
            what = f"got {self.language!r} for a task that is to be forgotten: answers in no language would be best"
            raise SuiteError("language", what, next="Remove language, or forget")
        if self.forget and chance != 0:
            what = f"got {chance!r} for a task that is to be forgotten"
            raise SuiteError("chance", what, "0: such a task scores by 1 - metric", "Remove chance")
        if not self.metric:
            raise SuiteError("metric", "missing", next="Add this key")
        if self.weight == 0:
            raise SuiteError(
                "weight", "should be greater than 0, got 0", next="Set `report_only: true` to score it not"
            )
        return self


class SuiteTask(_TaskKeys):
    """One task of a suite: a leaf task of lm-eval, or one for each split."""

    chance: Chance
    group: str = ""  # the lm-eval group or tag that it was named by; no key of the file
    place: int = -1  # which entry of the file's `tasks` it came from; no key of the file

    @property
    def column(self) -> str:
        """The per-item column that scores: the metric's own, or one minus it where the task is to be forgotten."""
        return f"1-{self.metric}" if self.forget else self.metric

    def lm_eval_task(self, split: str) -> str:
        """The lm-eval task that `split` takes its documents from."""
        return self.task if isinstance(self.task, str) else str(getattr(self.task, split))


def _threshold(given: float | Literal[False]) -> float | Literal[False]:
    if given is not False and not 0.5 <= given <= 1:
        raise SuiteError("", f"should be at least 0.5 and at most 1, or false, got {given}")
    return given


def _chances_in_range(given: float | dict[str, float]) -> float | dict[str, float]:
    for leaf, value in given.items() if isinstance(given, dict) else [("", given)]:
        if not 0 <= value < 1:
            raise SuiteError(leaf, f"should be at least 0 and less than 1, got {value}")
    return given


class _WrittenTask(_TaskKeys):
    """One entry of a file's `tasks`: a task, or a group of them."""

    chance: Annotated[float | dict[str, float], AfterValidator(_chances_in_range)]


class _SuiteKeys(PromptOptions):
    name: Name
    include: tuple[str, ...] = ()  # absolute after `load_suite`
    documents: DocumentCounts = DocumentCounts()
    guards: tuple[Guard, ...] = ()
    fitness: Literal["gold_logprob", "score"] = "gold_logprob"
    split_seed: int = 0
    near_duplicates: Annotated[float | Literal[False], AfterValidator(_threshold)] = 0.8
    acknowledge_contamination: bool = False


class _WrittenSuite(_SuiteKeys):
    tasks: Annotated[tuple[_WrittenTask, ...], Field(min_length=1)]


class Suite(_SuiteKeys):
    """What is measured. Plain data: `Suite.model_validate(suite.model_dump())` is the same suite on any node."""

    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    source: str = ""  # the file it was read from: what errors name; no key of the file

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        for index, task in enumerate(self.tasks):
            if Counter(other.name for other in self.tasks[:index])[task.name]:
                earlier = next(i for i, other in enumerate(self.tasks) if other.name == task.name)
                what = f"'{task.name}' is the name of tasks[{self._place(earlier)}] too"
                where = f"tasks[{self._place(index)}].name"
                raise SuiteError(where, what, "Names are unique", "Set `name` on one of them")
            for split in SPLITS:
                if self._count(task, split) is None:
                    where = f"tasks[{self._place(index)}].documents.{split}"
                    raise SuiteError(where, "missing, for the task and for the suite", next="Add `documents`")
            options = self.prompting(task)
            if options.fewshot_as_multiturn and not options.apply_chat_template:
                where = "" if task.fewshot_as_multiturn is None else f"tasks[{self._place(index)}]."
                what = f"true, and no chat template is applied to '{task.name}'"
                raise SuiteError(f"{where}fewshot_as_multiturn", what, next="Set apply_chat_template")
            if task.language and not task.report_only and self.fitness == "gold_logprob":
                what = (
                    f"{task.language!r} needs `fitness: score`: the log-probability of the right answer knows nothing "
                )
                what += "of the language that is generated"
                next_step = "Set `fitness: score`, or remove this key"
                raise SuiteError(f"tasks[{self._place(index)}].language", what, next=next_step)
        if not self.scoring:
            raise SuiteError("tasks", "every task is only reported: there is no score", next="Add a task that scores")
        self._check_guards()
        return self

    def _check_guards(self) -> None:
        names = [task.name for task in self.tasks]
        guarded = [guard.task for guard in self.guards]
        for index, name in enumerate(guarded):
            where = f"guards[{index}].task"
            if name not in names:
                near = did_you_mean(name, names)
                raise SuiteError(where, f"'{name}' is no task of this suite", f"Tasks: {', '.join(names)}", near)
            if name in guarded[:index]:
                what = f"'{name}' is guarded by guards[{guarded.index(name)}] too"
                raise SuiteError(where, what, "One guard a task", "Remove one of them")
        for index, task in enumerate(self.tasks):
            where = f"tasks[{self._place(index)}]"
            if task.report_only and task.name in guarded and not task.metric:
                what = f"missing, and '{task.name}' is guarded"
                raise SuiteError(f"{where}.metric", what, "A metric that is an item mean in [0, 1]", "Add this key")
            if task.report_only and task.name not in guarded and task.chance != 0:
                what = f"got {task.chance!r} for a task that is only reported"
                raise SuiteError(f"{where}.chance", what, next="Remove chance, or report_only")

    @property
    def scoring(self) -> tuple[SuiteTask, ...]:
        """The tasks that make the score: all that are not only reported."""
        return tuple(task for task in self.tasks if not task.report_only)

    @property
    def guarded(self) -> tuple[SuiteTask, ...]:
        """The tasks that have a guard, in the order of `guards`."""
        return tuple(task for guard in self.guards for task in self.tasks if task.name == guard.task)

    def prompting(self, task: SuiteTask) -> PromptOptions:
        """The prompt options of a task: its own, and the suite's where it has none."""
        own = {key: getattr(task, key) for key in PromptOptions.model_fields if getattr(task, key) is not None}
        shared = {key: getattr(self, key) for key in PromptOptions.model_fields}
        kwargs = {**(self.generation_kwargs or {}), **(task.generation_kwargs or {})}
        found = {**shared, **own, "generation_kwargs": kwargs or None}
        if found["fewshot_as_multiturn"] is None:
            found["fewshot_as_multiturn"] = bool(found["apply_chat_template"])
        return PromptOptions.model_construct(**found)

    def count(self, task: SuiteTask, split: str) -> int:
        """How many documents of `task` the split takes."""
        found = self._count(task, split)
        assert found is not None, "validated when the suite was made"
        return found

    def weights(self) -> dict[str, float]:
        """Task → weight, summing to one, of the tasks that make the score."""
        total = sum(task.weight for task in self.scoring)
        return {task.name: task.weight / total for task in self.scoring}

    def where(self, *keys: str | int) -> str:
        """`quickstart.yaml: tasks[1].metric`: how errors name a key of this suite, tasks by their index in `tasks`."""
        if len(keys) > 1 and keys[0] == "tasks" and isinstance(keys[1], int):
            keys = (keys[0], self._place(keys[1]), *keys[2:])
        return join(self.source, *keys)

    def digest(self) -> str:
        """sha256 (hex) of what the suite asks for, wherever its files lie.

        Keys that earlier versions did not know count only where they are set: an unchanged file keeps its digest.
        `near_duplicates` never counts: a search of before there was this key goes on with `false`. Where it is on
        record it is compared itself, and what it draws by the item sets.
        """
        data = self.model_dump(mode="json", exclude={"include", "source"})
        _drop(data, {**dict.fromkeys(PromptOptions.model_fields), "guards": []})
        _drop(data, {"acknowledge_contamination": False})
        del data["near_duplicates"]
        added = {**dict.fromkeys(PromptOptions.model_fields), "metrics": None, "report_only": False, "group": ""}
        added |= {"forget": False, "group_by": None, "language": None}
        added["documents_from"] = dict.fromkeys(SPLITS)
        del added["num_fewshot"]
        for task in data["tasks"]:
            _drop(task, added)
            del task["place"]
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _count(self, task: SuiteTask, split: str) -> int | None:
        own: int | None = getattr(task.documents, split)
        shared: int | None = getattr(self.documents, split)
        return shared if own is None else own

    def _place(self, index: int) -> int:
        """Index in the file's `tasks` of a task here, where groups are expanded."""
        place = self.tasks[index].place
        return index if place < 0 else place


def load_suite(path: Path) -> Suite:
    """The suite in a YAML file, its include folders made absolute, its groups expanded to their leaf tasks.

    Raises:
        SuiteError: not readable, not well-formed, an include folder is missing, or code would come from elsewhere. What
            only lm-eval can tell (tasks, metrics, how many documents there are) is checked by `Harness`, save the
            members of groups.
    """
    data = read(path, SuiteError)
    include = data.get("include")
    if isinstance(include, list) and all(isinstance(folder, str) for folder in include):
        data["include"] = [os.path.abspath(path.parent / folder) for folder in include]
        roots = task_roots(path)
        for index, folder in enumerate(data["include"]):
            where = join(str(path), "include", index)
            check_folder(folder, roots, where)
            if not os.path.isdir(folder):  # a name too long for any file is no folder, either
                raise SuiteError(where, f"no folder {folder}", "Folders are relative to the suite's file")
            check_code(folder, roots)
    written = validate(_WrittenSuite, data, str(path), SuiteError)
    folders = [Path(folder) for folder in written.include]
    names = Names(folders)
    tasks: list[dict[str, Any]] = []
    for place, task in enumerate(written.tasks):
        tasks += _leaves(task, place, names, folders, str(path))
    suite = validate(Suite, {**written.model_dump(), "tasks": tasks}, str(path), SuiteError)
    return suite.model_copy(update={"source": str(path)})


def _leaves(task: _WrittenTask, place: int, names: Names, folders: Sequence[Path], source: str) -> list[dict[str, Any]]:
    """The tasks that one entry of a file names, as data: itself, or the leaf tasks of its group."""
    entry = {**task.model_dump(), "place": place}
    if isinstance(task.task, str) and names.is_group(task.task):
        from evosearch.evaluation.suites.groups import expand  # loads lm-eval, which takes seconds

        return expand(entry, folders, join(source, "tasks", place))
    if isinstance(task.chance, dict):
        what = f"a chance level for each leaf task, and '{task.name}' is one task, not a group"
        raise SuiteError(join(source, "tasks", place, "chance"), what, "One number in [0, 1)")
    return [entry]


def _drop(data: dict[str, Any], unset: dict[str, Any]) -> None:
    """Remove the keys that stand at the value given."""
    for key, value in unset.items():
        if data[key] == value:
            del data[key]
