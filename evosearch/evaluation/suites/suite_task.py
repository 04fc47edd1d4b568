"""Schema of one task of a suite; `suite.py` shows every key."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from evosearch.documents import Document
from evosearch.errors import SuiteError

Count = Annotated[int, Field(ge=1, le=100_000_000)]
Name = Annotated[str, Field(pattern=r"^\w[\w.:/\-]*$", max_length=200)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Source = Literal["train", "validation", "test"]


# Keys that a file of prompts cannot have
_NEED_ANSWERS = (
    *("task", "metric", "metrics", "filter", "chance", "report_only", "unlearn", "language", "num_fewshot"),
    *("fewshot_as_multiturn", "documents_from"),
)


class SplitTasks(Document):
    """The lm-eval task of each split; splits with the same task draw disjoint documents from it."""

    search: str
    """Task of the search split."""
    validation: str
    """Task of the validation split."""
    test: str
    """Task of the test split."""


class DocumentCounts(Document):
    """Number of documents that each split takes from a task; None falls back to the suite's `documents`."""

    search: Count | None = None
    """Number of documents of the search split."""
    validation: Count | None = None
    """Number of documents of the validation split."""
    test: Count | None = None
    """Number of documents of the test split."""


class DocumentSources(Document):
    """Dataset split of an lm-eval task that each split draws from; default: the one that lm-eval evaluates."""

    search: Source | None = None
    """Dataset split that the search split draws from."""
    validation: Source | None = None
    """Dataset split that the validation split draws from."""
    test: Source | None = None
    """Dataset split that the test split draws from."""


_UNSET = (None, "", False, 0, DocumentSources())


class PromptOptions(Document):
    """Options of prompts and generation; None falls back to the suite, then to the task's YAML."""

    num_fewshot: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Number of examples in the prompt; a task that fixes 0 keeps it, as with `lm_eval --num_fewshot`."""
    apply_chat_template: bool | Annotated[str, Field(min_length=1)] | None = None
    """Apply the tokenizer's chat template: true for the default one, or a template's name."""
    fewshot_as_multiturn: bool | None = None
    """Format examples as chat turns; default: true if the template is applied."""
    system_instruction: Annotated[str, Field(max_length=100_000)] | None = None
    """System message of the chat, or text before the prompt."""
    generation_kwargs: dict[str, Any] | None = None
    """Options of generation, merged over the task's own; decoding is greedy."""


class _TaskKeys(PromptOptions):
    """Keys that `SuiteTask` and `TaskEntry` share."""

    task: str | SplitTasks = ""
    """An lm-eval task, group or tag, or one task for each split."""
    prompts: Annotated[str, Field(min_length=1)] | None = None
    """In place of `task`: a file of prompts without answers, one on each line, or JSON lines (`*.jsonl`) with a key
    `prompt`; relative to the suite's folder. Requires `fitness: {teachers: …}`."""
    name: Name = ""
    """Name in the suite; default: the lm-eval name (of the search split), or the name of the file of prompts."""
    metric: str = ""
    """The metric that is scored: an item mean in [0, 1]."""
    metrics: Annotated[tuple[str, ...], Field(max_length=100)] | None = None
    """Metrics that are also reported, with lm-eval's aggregation; default: every metric of the task."""
    filter: str | None = None
    """Filter of lm-eval whose output is scored; default: the task's first."""
    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Weight in the score, normalized over the tasks; a group's weight is divided among its leaf tasks."""
    documents: DocumentCounts = DocumentCounts()
    """Number of documents of each split; default: the suite's."""
    report_only: bool = False
    """Report the task without scoring it."""
    unlearn: bool = False
    """Unlearning target: the task scores 1 - metric."""
    documents_from: DocumentSources = DocumentSources()
    """Dataset split that each split draws from; default: the one that lm-eval evaluates."""
    group_by: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """A field, or a Jinja template of fields and filters without loops; documents of one group stay in one split and
    are one sampling unit."""
    language: Annotated[str, Field(min_length=1)] | None = None
    """Language code; generated text in another language counts as wrong. Requires `fitness: score`, or `expected_score`
    if a regex filter cuts the answer from the text."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        prompts = data.get("prompts")
        if not data.get("name"):
            task = data.get("task")
            name = task.get("search") if isinstance(task, dict) else task
            data = {**data, "name": PurePath(prompts).stem if not task and isinstance(prompts, str) else name}
        if prompts is not None:
            return {"chance": 0.0, **data}
        if data.get("report_only") is True:
            return {"weight": 0.0, "chance": 0.0, **data}
        return {"chance": 0.0, **data} if data.get("unlearn") else data

    @model_validator(mode="after")
    def _check_role(self) -> "_TaskKeys":
        if self.prompts is not None:
            self._check_prompts()
            return self
        if not self.task:
            raise SuiteError("task", "missing", "An lm-eval task, or a file under `prompts`", "Add one of these keys")
        if self.report_only:
            if self.unlearn:
                raise SuiteError("unlearn", "true for a report-only task", next="Remove unlearn or report_only")
            if self.weight != 0:
                what = f"got {self.weight!r} for a report-only task"
                raise SuiteError("weight", what, next="Remove weight or report_only")
            return self
        if self.unlearn:
            self._check_unlearning()
        if not self.metric:
            raise SuiteError("metric", "missing", next="Add this key")
        if self.weight == 0:
            next_step = "Set `report_only: true` to report the task without scoring it"
            raise SuiteError("weight", "should be greater than 0, got 0", next=next_step)
        return self

    def _check_prompts(self) -> None:
        """Refuse keys that need right answers or examples, which prompts do not have."""
        for key in _NEED_ANSWERS:
            if getattr(self, key, None) not in _UNSET:
                what = f"got {getattr(self, key)!r} for a file of prompts, which has no right answers"
                raise SuiteError(key, what, next="Remove it, or `prompts`")
        if self.weight == 0:
            raise SuiteError("weight", "should be greater than 0, got 0", next="Remove the task, or its weight")

    def _check_unlearning(self) -> None:
        chance = getattr(self, "chance", 0)
        if self.language:
            what = f"got {self.language!r} for an unlearning target: answers in another language would score best"
            raise SuiteError("language", what, next="Remove language or unlearn")
        if chance != 0:
            what = f"got {chance!r} for an unlearning target"
            raise SuiteError("chance", what, "Must be 0: such a task scores 1 - metric", "Remove chance")


class SuiteTask(_TaskKeys):
    """One task of a suite: a leaf task of lm-eval, or one for each split."""

    chance: Chance
    group: str = ""  # the lm-eval group or tag it was expanded from; not a key of the file
    place: int = -1  # index of its entry in the file's `tasks`; not a key of the file

    @property
    def column(self) -> str:
        """Name of the per-item column that is scored: the metric, or `1-metric` for an unlearning target."""
        return f"1-{self.metric}" if self.unlearn else self.metric

    @property
    def labelled(self) -> bool:
        """Whether its documents have right answers."""
        return self.prompts is None

    def lm_eval_task(self, split: str) -> str:
        """Return the lm-eval task that `split` draws its documents from; `prompts:NAME` for a file of prompts."""
        if self.prompts is not None:
            return f"prompts:{self.name}"
        return self.task if isinstance(self.task, str) else str(getattr(self.task, split))


def _chances_in_range(given: float | dict[str, float]) -> float | dict[str, float]:
    for leaf, value in given.items() if isinstance(given, dict) else [("", given)]:
        if not 0 <= value < 1:
            raise SuiteError(leaf, f"should be at least 0 and less than 1, got {value}")
    return given


class TaskEntry(_TaskKeys):
    """One entry of a file's `tasks`: a task, or a group of tasks."""

    chance: Annotated[float | dict[str, float], AfterValidator(_chances_in_range)]
    """Chance level in [0, 1); of a group also {leaf task: chance}."""
