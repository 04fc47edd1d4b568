"""What a suite asks of an lm-eval task, held against what the task is; and the task set to it.

Every function takes `where`, the key of the suite that errors name, and `name`, lm-eval's name of the task.
"""

import copy
from collections.abc import Sequence
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.suite import PromptOptions, SuiteTask

_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until", "loglikelihood_rolling")


def check_kind(where: str, name: str, task: Any) -> None:
    """The task is of a kind that can be scored.

    Raises:
        SuiteError: it is not.
    """
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES:
        what = f"'{name}' has the unknown output type {task.OUTPUT_TYPE}"
        raise SuiteError(where, what, f"Output types: {', '.join(_OUTPUT_TYPES)}")
    if getattr(task, "UNSAFE_CODE", False):
        raise SuiteError(where, f"'{name}' runs code that models write; evosearch has no sandbox for it")
    if getattr(task, "MULTIMODAL", False):
        raise SuiteError(where, f"'{name}' needs images or audio", "Text tasks only")


def check_role(where: str, name: str, task: Any, spec: SuiteTask, guarded: bool) -> None:
    """The metrics that the suite names are the task's; one that scores or is guarded is an item mean, larger better.

    Raises:
        SuiteError: a metric is unknown, or is not of the kind.
    """
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


def ensemble_of(where: str, name: str, task: Any, asked: str | None) -> Any:
    """The task's filter ensemble of a name, its first where none is asked for.

    Raises:
        SuiteError: the task has no filter of that name.
    """
    known = {ensemble.name: ensemble for ensemble in task._filters}
    if asked is None:
        return next(iter(known.values()))
    if asked not in known:
        allowed = f"Filters of '{name}': {', '.join(known)}"
        raise SuiteError(
            join(where, "filter"), f"'{name}' has no filter '{asked}'", allowed, did_you_mean(asked, known)
        )
    return known[asked]


def set_options(where: str, name: str, task: Any, spec: SuiteTask, options: PromptOptions) -> None:
    """Shots and generation arguments as `lm_eval --num_fewshot --gen_kwargs` would set them.

    Raises:
        SuiteError: the task has no use for an option, or fixes another value.
    """
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
