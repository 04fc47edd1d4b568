"""Commands of lm-eval's program that repeat the metrics of a suite's split on an exported model."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.suite_task import PromptOptions
from evosearch.evaluation.types import ItemSet
from evosearch.recipe.portable import relative

MODEL = "$MODEL"  # the folder of the merged model, as a full path


def lm_eval_commands(suite: Suite, sets: Mapping[str, ItemSet], folder: Path, dtype: str) -> tuple[str, ...]:
    """Return the commands that score the same documents, one for each set of prompt options.

    They run in the folder of the tasks, because lm-eval takes data files relative to the working directory. Tasks that
    draw from another dataset split than lm-eval evaluates, and files of prompts, have no command.

    Args:
        suite: The suite, with absolute include folders.
        sets: Task → its items on the split.
        folder: Folder that the commands start from.
        dtype: Type of the weights.
    """
    if len(suite.include) > 1:  # lm-eval would need several working directories
        return ()
    groups: dict[str, dict[str, list[int]]] = {}
    for task in suite.tasks:
        items = sets.get(task.name)
        if items is None or items.documents or not task.labelled:
            continue
        options = " ".join(_options(suite.prompting(task)))
        groups.setdefault(options, {})[items.lm_eval_task] = list(items.doc_ids)
    return tuple(_command(options, documents, suite, folder, dtype) for options, documents in groups.items())


def _command(options: str, documents: Mapping[str, list[int]], suite: Suite, folder: Path, dtype: str) -> str:
    where = f"cd {shlex.quote(relative(suite.include[0], folder))} && " if suite.include else ""
    include = ["--include_path", "."] if suite.include else []
    samples = shlex.quote(json.dumps(documents, separators=(",", ":")))
    words = ["lm_eval", "run", "--model", "hf", "--model_args", f'"pretrained={MODEL},dtype={dtype}"']
    words += ["--tasks", ",".join(documents), *include, "--samples", samples, *filter(None, [options])]
    return where + " ".join(words)


def _options(options: PromptOptions) -> list[str]:
    """Return the options of lm-eval's program that set prompts as the suite does."""
    found: list[str] = []
    if options.num_fewshot is not None:
        found += ["--num_fewshot", str(options.num_fewshot)]
    if options.apply_chat_template:
        template: Any = options.apply_chat_template
        found += ["--apply_chat_template", *([] if template is True else [shlex.quote(template)])]
        found += ["--fewshot_as_multiturn", "true" if options.fewshot_as_multiturn else "false"]
    if options.system_instruction is not None:
        found += ["--system_instruction", shlex.quote(options.system_instruction)]
    if options.generation_kwargs:
        pairs = (f"{key}={value!r}" for key, value in options.generation_kwargs.items())
        found += ["--gen_kwargs", *map(shlex.quote, pairs)]
    return found
