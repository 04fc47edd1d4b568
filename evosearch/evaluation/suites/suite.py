"""Suites: what a search measures, as data; the schema and loading of suite files.

```yaml
name: quickstart
include: [tiny]              # folders with lm-eval task YAMLs, relative to this file
tasks:
  - task: tiny_reverse       # an lm-eval task, group or tag, or {search: a, validation: b, test: c} (three tasks)
    name: reverse            # default: the lm-eval name (of the search split)
    metric: exact_match      # a metric of that task: an item mean in [0, 1]
    metrics: [bleu]          # also reported, with lm-eval's own aggregation; default: every metric of the task
    filter: none             # default: the task's first
    chance: 0.0              # chance level, c in [0, 1); for a group also {leaf task: c}
    weight: 1.0              # normalized over the tasks; a group's weight is divided among its leaf tasks
    documents: {test: 300}   # default: the suite's
    documents_from: {search: train}   # dataset split of each split: train, validation, test; default: lm-eval's
    group_by: passage        # a field or a Jinja template; a group stays in one split and clusters standard errors
    language: ja             # generated text in another language counts as wrong; see the key for its fitness
    num_fewshot: 0           # a task may set this and the last four keys below; default: the suite's
  - {task: secrets, metric: acc, unlearn: true}   # scores 1 - acc, with fitness log(1 - p); its chance level is 0
  - {prompts: chat.txt, name: chat}   # a file of prompts without answers, for `fitness: {teachers: …}`
  - task: wikitext
    report_only: true        # not part of score or fitness: no chance, no weight; `metric` is optional
guards:                      # tasks whose points may drop at most this far below the base's
  - {task: reverse, max_drop: 2.0}
documents: {search: 60, validation: 100, test: 300}
fitness: expected_score      # the default; or: score, gold_logprob, margin
# or, without right answers on search: fitness: {teachers: {reverse: MODEL, chat: MODEL}}, or {teachers: auto}
split_seed: 0
near_duplicates: 0.8         # documents this similar never end up in different splits (default 0.8); or: false
acknowledge_contamination: true   # allow tuning on a public benchmark's test documents; default: false
num_fewshot: 5               # default: the task's own; a task that fixes 0 keeps it, as with `lm_eval --num_fewshot`
apply_chat_template: true    # or the name of one of the tokenizer's templates; default: false
fewshot_as_multiturn: true   # examples as chat turns; default: true if the template is applied
system_instruction: Be brief.
generation_kwargs: {max_gen_toks: 64}   # merged over the task's own; greedy decoding only
```

A task's YAML is code (`!function`, templates that run). It is loaded from lm-eval's library and from the folders under
`include`, which must be next to or below the suite's file, or below a folder listed in $EVOSEARCH_TASKS (separated by
':'). The same applies to the YAMLs that it includes and the Python files of its functions, so a suite cannot bring in
code from elsewhere. `group_by` is part of the suite itself and is rendered in a sandbox.

A guarded task's points are 100 (m - c) / (1 - c). They are compared with those of the baseline `base` or, if the recipe
has no base, of the parent that is best at the task. Any task of the suite can be guarded, by its name in the suite (for
a group: its leaf tasks). A report-only task then needs a `metric` that is an item mean in [0, 1], and may have a
`chance`. The gate's confidence bound must exclude a larger drop, so `max_drop: 0` requires a significant gain.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from evosearch.documents import Document, join, read, validate
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.library import TaskNames
from evosearch.evaluation.suites.suite_task import DocumentCounts, Name, PromptOptions, SuiteTask, TaskEntry
from evosearch.evaluation.suites.task_files import check_code, check_folder, task_roots
from evosearch.evaluation.suites.teacher_keys import AUTO, TeacherFitness
from evosearch.evaluation.types import SPLITS, FitnessKind
from evosearch.untrusted import beside

MAX_TASKS = 1000  # of a file; a group is one of them


class Guard(Document):
    """A task, by its name in the suite, whose points may drop by at most `max_drop` below the reference's."""

    task: str
    """Name of the task in the suite."""
    max_drop: Annotated[float, Field(ge=0, le=1000)]
    """Largest drop in points that the gate accepts."""


Plain = Literal["expected_score", "score", "gold_logprob", "margin"]  # kinds of fitness that need right answers


def _threshold(given: float | Literal[False]) -> float | Literal[False]:
    if given is not False and not 0.5 <= given <= 1:
        raise SuiteError("", f"should be at least 0.5 and at most 1, or false, got {given}")
    return given


def _fitness(given: Any) -> Any:
    """Validate a mapping as teachers at once, so that its errors name the key in it."""
    if isinstance(given, Mapping):
        return validate(TeacherFitness, given, "", SuiteError)
    kinds = get_args(Plain)
    if not isinstance(given, TeacherFitness) and given not in kinds:
        near = did_you_mean(given, kinds) if isinstance(given, str) else None
        raise SuiteError("", f"got {given!r}", f"{', '.join(kinds)}, or {{teachers: …}}", near)
    return given


class _SuiteKeys(PromptOptions):
    """Keys that `Suite` and `SuiteFile` share."""

    name: Name
    """Name of the suite."""
    include: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Folders with YAML files of lm-eval tasks, relative to the suite's folder."""
    documents: DocumentCounts = DocumentCounts()
    """Number of documents that each split takes from every task."""
    guards: Annotated[tuple[Guard, ...], Field(max_length=MAX_TASKS)] = ()
    """Tasks whose points may not drop by more than a margin."""
    fitness: Annotated[Plain | TeacherFitness, BeforeValidator(_fitness)] = "expected_score"
    """The optimizer's objective: the score with probabilities of being right in place of right and wrong, the score
    itself, the log-probability of right answers, their softened margin, or closeness to teachers (`teachers: …`)."""
    split_seed: int = 0
    """Seed of the splits."""
    near_duplicates: Annotated[float | Literal[False], AfterValidator(_threshold)] = 0.8
    """Similarity at which documents must stay in one split, at least 0.5; false disables the check."""
    acknowledge_contamination: bool = False
    """Allow a search on the evaluation documents of a public benchmark."""


class SuiteFile(_SuiteKeys):
    """A suite as written in a file, before groups are expanded."""

    tasks: Annotated[tuple[TaskEntry, ...], Field(min_length=1, max_length=MAX_TASKS)]
    """The tasks."""


class Suite(_SuiteKeys):
    """A suite with groups expanded; `Suite.model_validate(suite.model_dump())` is the same suite on any node."""

    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    source: str = ""  # the file it was loaded from, for errors; not a key of the file

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        for index, task in enumerate(self.tasks):
            where = f"tasks[{self._place(index)}]"
            self._check_name(index, where)
            self._check_counts(task, where)
            self._check_chat(task, where)
            self._check_language(task, where)
            self._check_teacher(task, where)
        if not self.fitted:
            raise SuiteError("tasks", "every task is report-only, so there is no score", next="Add a task that scores")
        self._check_guards()
        self._check_named_teachers()
        return self

    def _check_name(self, index: int, where: str) -> None:
        names = [task.name for task in self.tasks[: index + 1]]
        if (earlier := names.index(names[-1])) < index:
            what = f"'{names[-1]}' is also the name of tasks[{self._place(earlier)}]"
            raise SuiteError(f"{where}.name", what, "Names are unique", "Set `name` on one of them")

    def _check_counts(self, task: SuiteTask, where: str) -> None:
        for split in SPLITS:
            if self._count(task, split) is None:
                what = "missing for the task and for the suite"
                raise SuiteError(f"{where}.documents.{split}", what, next="Add `documents`")

    def _check_chat(self, task: SuiteTask, where: str) -> None:
        options = self.prompting(task)
        if options.fewshot_as_multiturn and not options.apply_chat_template:
            key = "fewshot_as_multiturn" if task.fewshot_as_multiturn is None else f"{where}.fewshot_as_multiturn"
            what = f"true, but no chat template is applied to '{task.name}'"
            raise SuiteError(key, what, next="Set apply_chat_template")

    def _check_language(self, task: SuiteTask, where: str) -> None:
        if task.language and not task.report_only and self.fitness not in ("score", "expected_score"):
            what = f"{task.language!r} requires `fitness: score` or, if answers are cut from generated text, "
            what += "`expected_score`"
            raise SuiteError(f"{where}.language", what, next="Set `fitness: score`, or remove this key")

    def _check_named_teachers(self) -> None:
        if isinstance(self.fitness, TeacherFitness) and not isinstance(self.fitness.teachers, str):
            names = [task.name for task in self.fitted]
            for name in self.fitness.teachers:
                if name not in names:
                    near, allowed = did_you_mean(name, names), f"Tasks: {', '.join(names)}"
                    raise SuiteError(f"fitness.teachers.{name}", "not a task of the fitness", allowed, near)

    def _check_teacher(self, task: SuiteTask, where: str) -> None:
        if not isinstance(self.fitness, TeacherFitness):
            if not task.labelled:
                what = f"got {task.prompts!r}, and prompts have no right answers"
                raise SuiteError(f"{where}.prompts", what, next="Set `fitness: {teachers: {TASK: MODEL, …}}`")
            return
        if task.unlearn:
            what = "true, and a task to be forgotten has no teacher"
            raise SuiteError(f"{where}.unlearn", what, next="Remove it, or set another `fitness`")
        if task.report_only:
            return
        teacher, key = self.fitness.teacher(task.name), "fitness.teachers"
        if teacher is None:
            raise SuiteError(key, f"no teacher for '{task.name}'", next=f"Add `{task.name}: MODEL`, or `auto`")
        if teacher == AUTO and not task.labelled:
            what = f"'{task.name}' has no right answers by which `auto` could choose its teacher"
            raise SuiteError(key, what, next=f"Name one: `teachers: {{{task.name}: MODEL, …}}`")

    def _check_guards(self) -> None:
        names = [task.name for task in self.tasks]
        guarded = [guard.task for guard in self.guards]
        for index, name in enumerate(guarded):
            where = f"guards[{index}].task"
            if name not in names:
                near = did_you_mean(name, names)
                raise SuiteError(where, f"'{name}' is not a task of this suite", f"Tasks: {', '.join(names)}", near)
            if name in guarded[:index]:
                what = f"'{name}' is also guarded by guards[{guarded.index(name)}]"
                raise SuiteError(where, what, "One guard per task", "Remove one of them")
        for index, task in enumerate(self.tasks):
            where = f"tasks[{self._place(index)}]"
            if task.report_only and task.name in guarded and not task.metric:
                what = f"missing, but '{task.name}' is guarded"
                raise SuiteError(f"{where}.metric", what, "A metric that is an item mean in [0, 1]", "Add this key")
            if task.report_only and task.name not in guarded and task.chance != 0:
                what = f"got {task.chance!r} for a report-only task"
                raise SuiteError(f"{where}.chance", what, next="Remove chance or report_only")

    @property
    def fitted(self) -> tuple[SuiteTask, ...]:
        """The tasks that make up the fitness: all except report-only ones."""
        return tuple(task for task in self.tasks if not task.report_only)

    @property
    def scoring(self) -> tuple[SuiteTask, ...]:
        """The tasks that make up the score: those of the fitness whose documents have right answers."""
        return tuple(task for task in self.fitted if task.labelled)

    @property
    def guarded(self) -> tuple[SuiteTask, ...]:
        """The tasks that have a guard, in the order of `guards`."""
        return tuple(task for guard in self.guards for task in self.tasks if task.name == guard.task)

    @property
    def told(self) -> FitnessKind:
        """The kind of fitness."""
        return "teachers" if isinstance(self.fitness, TeacherFitness) else self.fitness

    def reads_answers(self, task: SuiteTask, split: str) -> bool:
        """Return whether right answers of a task are read on a split.

        With teachers they are not read on the search split, except those of guarded and of report-only tasks.
        """
        if not task.labelled:
            return False
        return self.told != "teachers" or split != "search" or task.report_only or task in self.guarded

    def prompting(self, task: SuiteTask) -> PromptOptions:
        """Return the prompt options of a task: its own, falling back to the suite's."""
        own = {key: getattr(task, key) for key in PromptOptions.model_fields if getattr(task, key) is not None}
        shared = {key: getattr(self, key) for key in PromptOptions.model_fields}
        kwargs = {**(self.generation_kwargs or {}), **(task.generation_kwargs or {})}
        found = {**shared, **own, "generation_kwargs": kwargs or None}
        if found["fewshot_as_multiturn"] is None:
            found["fewshot_as_multiturn"] = bool(found["apply_chat_template"])
        return PromptOptions.model_construct(**found)

    def count(self, task: SuiteTask, split: str) -> int:
        """Return the number of documents that the split takes from `task`; the test split takes no prompts."""
        found = self._count(task, split)
        assert found is not None, "validated when the suite was created"
        return found

    def weights(self) -> dict[str, float]:
        """Return task → weight of the tasks that make up the score; weights sum to one."""
        total = sum(task.weight for task in self.scoring)
        return {task.name: task.weight / total for task in self.scoring}

    def without_teachers(self) -> "Suite":
        """Return the suite with its score as the fitness, to measure a model where there are no teachers.

        Raises:
            SuiteError: No task has right answers.
        """
        if self.told != "teachers":
            return self
        if not self.scoring:
            what = "no task has right answers, so there is no score"
            raise SuiteError(self.where("tasks"), what, next="Add a task of lm-eval")
        tasks = tuple(task for task in self.tasks if task.labelled)
        return self.model_copy(update={"fitness": "score", "tasks": tasks})

    def where(self, *keys: str | int) -> str:
        """Return a key's location for errors: `quickstart.yaml: tasks[1].metric`; tasks are given by index."""
        if len(keys) > 1 and keys[0] == "tasks" and isinstance(keys[1], int):
            keys = (keys[0], self._place(keys[1]), *keys[2:])
        return join(self.source, *keys)

    def to_record(self) -> dict[str, Any]:
        """Return the suite as plain data, independent of file locations; a file of prompts has its name only."""
        data = self.model_dump(mode="json", exclude={"include", "source"})
        for task in data["tasks"]:
            task["prompts"] = task["prompts"] and os.path.basename(task["prompts"])
        return data

    def digest(self) -> str:
        """Return the sha256 (hex) of the suite's content, independent of file locations."""
        tasks = {"__all__": {"place", "prompts"}}
        data = self.model_dump(mode="json", exclude={"include": True, "source": True, "tasks": tasks})
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _count(self, task: SuiteTask, split: str) -> int | None:
        if split == "test" and not task.labelled:
            return 0
        own: int | None = getattr(task.documents, split)
        shared: int | None = getattr(self.documents, split)
        return shared if own is None else own

    def _place(self, index: int) -> int:
        """Index of a task's entry in the file, before groups were expanded."""
        place = self.tasks[index].place
        return index if place < 0 else place


def load_suite(path: Path) -> Suite:
    """Load a suite from a YAML file, with absolute include folders and groups expanded to their leaf tasks.

    lm-eval is only loaded if a task is a group. Task names, metrics and numbers of documents are checked by `Harness`.

    Raises:
        SuiteError: The file is unreadable or invalid, an include folder is missing or not trusted, a file of prompts is
            a link out of the folder (see `beside`), or a group is invalid.
    """
    data = read(path, SuiteError)
    include = data.get("include")
    if isinstance(include, list) and all(isinstance(folder, str) for folder in include):
        data["include"] = [os.path.abspath(path.parent / folder) for folder in include]
        roots = task_roots(path)
        for index, folder in enumerate(data["include"]):
            where = join(str(path), "include", index)
            check_folder(folder, roots, where)
            if not os.path.isdir(folder):  # also false if the name is too long
                raise SuiteError(where, f"folder {folder} not found", "Folders are relative to the suite's file")
            check_code(folder, roots)
    for place, entry in enumerate(data["tasks"] if isinstance(data.get("tasks"), list) else ()):
        if isinstance(entry, dict) and isinstance(entry.get("prompts"), str):
            entry["prompts"] = os.path.abspath(beside(entry["prompts"], path.parent, SuiteError))
            if not os.path.isfile(entry["prompts"]):
                where = join(str(path), "tasks", place, "prompts")
                raise SuiteError(where, f"no file {entry['prompts']}", "Files are relative to the suite's folder")
    written = validate(SuiteFile, data, str(path), SuiteError)
    folders = [Path(folder) for folder in written.include]
    names = TaskNames(folders)
    tasks: list[dict[str, Any]] = []
    for place, task in enumerate(written.tasks):
        tasks += _leaves(task, place, names, folders, str(path))
    suite = validate(Suite, {**written.model_dump(), "tasks": tasks}, str(path), SuiteError)
    return suite.model_copy(update={"source": str(path)})


def _leaves(
    task: TaskEntry, place: int, names: TaskNames, folders: Sequence[Path], source: str
) -> list[dict[str, Any]]:
    """Return the tasks of one entry of a file as plain data: the entry itself, or the leaf tasks of its group."""
    entry = {**task.model_dump(), "place": place}
    if isinstance(task.task, str) and task.task and names.is_group(task.task):
        from evosearch.evaluation.suites.groups import expand  # loads lm-eval, which takes seconds

        return expand(entry, folders, join(source, "tasks", place))
    if isinstance(task.chance, dict):
        what = f"a chance level for each leaf task, but '{task.name}' is a single task, not a group"
        raise SuiteError(join(source, "tasks", place, "chance"), what, "One number in [0, 1)")
    return [entry]
