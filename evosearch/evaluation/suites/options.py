"""Validation of a suite's task entries against the lm-eval tasks, and setting of their options.

In every function, `where` is the key of the suite to report in errors and `name` is the task's name in lm-eval.
"""

import copy
from collections.abc import Sequence
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.suite_task import PromptOptions, SuiteTask

_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until", "loglikelihood_rolling")


def check_kind(where: str, name: str, task: Any) -> None:
    """Check that the task is of a supported kind.

    Raises:
        SuiteError: The output type is unknown, or the task needs images, audio or code execution.
    """
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES:
        what = f"'{name}' has the unsupported output type {task.OUTPUT_TYPE}"
        raise SuiteError(where, what, f"Output types: {', '.join(_OUTPUT_TYPES)}")
    if getattr(task, "UNSAFE_CODE", False):
        raise SuiteError(where, f"'{name}' executes model-written code, which evosearch does not sandbox")
    if getattr(task, "MULTIMODAL", False):
        raise SuiteError(where, f"'{name}' needs images or audio", "Only text tasks are supported")


def check_role(where: str, name: str, task: Any, spec: SuiteTask, guarded: bool) -> None:
    """Check that the task has the suite's metrics, and that a scored or guarded metric is an item mean to maximize.

    Raises:
        SuiteError: A metric is unknown or unsuitable.
    """
    known = list(task.aggregation())
    if spec.report_only and not guarded:
        _check_known(f"{where}.metric", name, [spec.metric] if spec.metric else [], known)
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        what = f"'{name}' measures perplexity, which is not an item mean in [0, 1]"
        next = "Set `report_only: true`, and remove chance and weight"
        raise SuiteError(join(where, "task"), what, next="Guard another task" if spec.report_only else next)
    else:
        _check_metric(f"{where}.metric", name, task, spec.metric)
    _check_known(f"{where}.metrics", name, spec.metrics or (), known)


def _check_known(where: str, name: str, requested: Sequence[str], known: Sequence[str]) -> None:
    for metric in requested:
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
        what = f"'{metric}' of '{name}' is not the mean of one number per document"
        raise SuiteError(where, what, f"Item means of '{name}': {', '.join(means) or 'none'}")
    if not task.higher_is_better().get(metric, True):
        raise SuiteError(where, f"smaller values of '{metric}' of '{name}' are better", "Larger must be better")


def ensemble_of(where: str, name: str, task: Any, requested: str | None) -> Any:
    """Return the task's filter ensemble of the requested name, or its first one if None.

    Raises:
        SuiteError: The task has no filter of that name.
    """
    known = {ensemble.name: ensemble for ensemble in task._filters}
    if requested is None:
        return next(iter(known.values()))
    if requested not in known:
        what, allowed = f"'{name}' has no filter '{requested}'", f"Filters of '{name}': {', '.join(known)}"
        raise SuiteError(join(where, "filter"), what, allowed, did_you_mean(requested, known))
    return known[requested]


def set_options(where: str, name: str, task: Any, spec: SuiteTask, options: PromptOptions) -> None:
    """Set shots and generation arguments as `lm_eval --num_fewshot --gen_kwargs` would.

    Raises:
        SuiteError: An option does not apply to the task, or the task fixes another value.
    """
    own = task.config.num_fewshot
    if spec.num_fewshot and own == 0:  # lm-eval never overrides a zero, so its command line could not reproduce it
        what = f"'{name}' fixes num_fewshot at 0"
        raise SuiteError(f"{where}.num_fewshot", what, next="Remove it from the task's YAML or from here")
    shots = own if own == 0 and spec.num_fewshot is None else options.num_fewshot
    task.set_config(key="num_fewshot", value=shots if shots is not None else own or 0)
    if task.OUTPUT_TYPE == "generate_until":
        if options.generation_kwargs:
            kwargs = {**(task.config.generation_kwargs or {}), **copy.deepcopy(options.generation_kwargs)}
            task.set_config(key="generation_kwargs", value=kwargs)
    elif spec.generation_kwargs:
        what = f"'{name}' does not generate: its output type is {task.OUTPUT_TYPE}"
        raise SuiteError(f"{where}.generation_kwargs", what, next="Remove this key")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        for key in ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction"):
            if getattr(spec, key):
                what = f"'{name}' has no prompt: it scores complete texts"
                raise SuiteError(f"{where}.{key}", what, next="Remove this key")
