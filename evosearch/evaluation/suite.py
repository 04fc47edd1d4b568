"""Suites: what a search measures, as data. Pure: knows nothing of lm-eval, opens nothing but the suite's own file.

```yaml
name: quickstart
include: [tiny]              # folders with lm-eval task YAMLs, relative to this file
tasks:
  - task: tiny_reverse       # an lm-eval task, or {search: a, validation: b, test: c}
    name: reverse            # default: the lm-eval name (of the search split)
    metric: exact_match      # a metric of that task: an item mean in [0, 1]
    filter: none             # default: the task's first
    num_fewshot: 0           # default: the task's
    chance: 0.0              # what guessing scores, c in [0, 1)
    weight: 1.0              # normalized to sum one over the tasks
    documents: {test: 300}   # default: the suite's
documents: {search: 60, validation: 100, test: 300}
fitness: gold_logprob        # or: score
split_seed: 0
```

A task's YAML is code (`!function`, templates that run): only the folders named under `include`, and lm-eval's own
library, are ever loaded.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evosearch.documents import Document, join, read, validate
from evosearch.errors import SuiteError
from evosearch.evaluation.types import SPLITS

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.:/\-]*$", max_length=200)]


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


class SuiteTask(Document):
    """One task of a suite."""

    task: str | SplitTasks
    name: Name = ""
    metric: str
    filter: str | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    chance: Annotated[float, Field(ge=0, lt=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0
    documents: DocumentCounts = DocumentCounts()

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name"):
            task = data.get("task")
            data = {**data, "name": task.get("search") if isinstance(task, dict) else task}
        return data

    def lm_eval_task(self, split: str) -> str:
        """The lm-eval task that `split` takes its documents from."""
        return self.task if isinstance(self.task, str) else str(getattr(self.task, split))


class Suite(Document):
    """What is measured. Plain data: `Suite.model_validate(suite.model_dump())` is the same suite on any node."""

    name: Name
    include: tuple[str, ...] = ()  # absolute after `load_suite`
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    documents: DocumentCounts = DocumentCounts()
    fitness: Literal["gold_logprob", "score"] = "gold_logprob"
    split_seed: int = 0
    source: str = ""  # the file it was read from: what errors name; no key of the file

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        for index, task in enumerate(self.tasks):
            if Counter(other.name for other in self.tasks[:index])[task.name]:
                earlier = next(i for i, other in enumerate(self.tasks) if other.name == task.name)
                what = f"'{task.name}' is the name of tasks[{earlier}] too"
                raise SuiteError(f"tasks[{index}].name", what, "Names are unique", "Set `name` on one of them")
            for split in SPLITS:
                if self._count(task, split) is None:
                    where = f"tasks[{index}].documents.{split}"
                    raise SuiteError(where, "missing, for the task and for the suite", next="Add `documents`")
        return self

    def count(self, task: SuiteTask, split: str) -> int:
        """How many documents of `task` the split takes."""
        found = self._count(task, split)
        assert found is not None, "validated when the suite was made"
        return found

    def weights(self) -> dict[str, float]:
        """Task → weight, summing to one."""
        total = sum(task.weight for task in self.tasks)
        return {task.name: task.weight / total for task in self.tasks}

    def where(self, *keys: str | int) -> str:
        """`quickstart.yaml: tasks[1].metric`: how errors name a key of this suite."""
        return join(self.source, *keys)

    def digest(self) -> str:
        """sha256 (hex) of what the suite asks for, wherever its files lie."""
        data = self.model_dump(mode="json", exclude={"include", "source"})
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _count(self, task: SuiteTask, split: str) -> int | None:
        own: int | None = getattr(task.documents, split)
        shared: int | None = getattr(self.documents, split)
        return shared if own is None else own


def load_suite(path: Path) -> Suite:
    """The suite in a YAML file, its include folders made absolute.

    Raises:
        SuiteError: not readable, not well-formed, or an include folder is missing. What only lm-eval can tell (tasks,
            metrics, how many documents there are) is checked by `Harness`.
    """
    data = read(path, SuiteError)
    if "source" in data:
        raise SuiteError(join(str(path), "source"), "unknown key", next="Remove it")
    include = data.get("include")
    if isinstance(include, list) and all(isinstance(folder, str) for folder in include):
        data["include"] = [str((path.parent / folder).resolve()) for folder in include]
        for index, folder in enumerate(data["include"]):
            if not Path(folder).is_dir():
                where = join(str(path), "include", index)
                raise SuiteError(where, f"no folder {folder}", "Folders are relative to the suite's file")
    suite = validate(Suite, data, str(path), SuiteError)
    return suite.model_copy(update={"source": str(path)})
