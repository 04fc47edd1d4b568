"""Tasks of a suite that are a file of prompts: no answers, no metric, only teachers.

| file | one prompt |
|---|---|
| `*.jsonl` | a line with a JSON object; its text is `prompt`, other keys are fields of the document (for `group_by`) |
| any other | a line; blank lines are skipped |

A prompt is a document like those of lm-eval's tasks: prompts are assigned to splits by hash, near-duplicates stay in
one split, and the suite's chat template, system instruction and generation options apply. There are no examples.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evosearch.errors import SuiteError, did_you_mean
from evosearch.untrusted import read_bytes

FIELD = "prompt"
MAX_BYTES = 2**28  # of a file of prompts
MAX_NEW_TOKENS = 64  # of a teacher's answer, unless generation_kwargs sets max_gen_toks
SPLIT = "prompts"  # the dataset split that holds all prompts


class Prompts:
    """A dataset of prompts, as lm-eval calls for it. Configurations that differ only in the file are equal."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __call__(self, **kwargs: Any) -> Any:
        """Return a dataset with one split."""
        from datasets import Dataset, DatasetDict

        return DatasetDict({SPLIT: Dataset.from_list(self._rows)})


def prompt_task(where: str, name: str, file: str) -> Any:
    """Return the lm-eval task of a file of prompts.

    Args:
        where: The suite's key, for errors.
        name: The task's name.
        file: Path of the file.

    Raises:
        SuiteError: The file is missing or empty, has a line without a prompt, or a key with values of several types.
    """
    from lm_eval.api.task import ConfigurableTask

    config = {
        "task": name,
        "custom_dataset": _dataset(where, Path(file)),
        "test_split": SPLIT,
        "num_fewshot": 0,
        "output_type": "generate_until",
        "doc_to_text": FIELD,
        "doc_to_target": "",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": MAX_NEW_TOKENS},
    }
    return ConfigurableTask(config=config)


def _dataset(where: str, file: Path) -> Prompts:
    found = Prompts(read_prompts(where, file))
    try:
        found()
    except (ValueError, TypeError, OverflowError) as exc:  # pyarrow's errors are among these
        what = f"{file}: a key has values of several types, or too large a number: {exc}"
        raise SuiteError(where, what, "Keys with values of one type", "Change or remove them") from None
    return found


def read_prompts(where: str, file: Path) -> list[dict[str, Any]]:
    """Return the documents of a file of prompts, all with the same fields.

    Raises:
        SuiteError: See `prompt_task`.
    """
    try:
        text = read_bytes(file, SuiteError, MAX_BYTES).decode("utf-8")
    except (SuiteError, UnicodeDecodeError) as exc:
        reason = exc.what if isinstance(exc, SuiteError) else "it is not UTF-8 text"
        raise SuiteError(where, f"cannot read {file}: {reason}", "A text file, or JSON lines (*.jsonl)") from None
    split = (line.removesuffix("\r") for line in text.split("\n"))
    lines = [(number, line) for number, line in enumerate(split, start=1) if line.strip()]
    if not lines:
        raise SuiteError(where, f"{file} has no prompts", "One prompt on each line", "Add prompts")
    if file.suffix != ".jsonl":
        return [{FIELD: line} for _, line in lines]
    rows = [_row(where, f"{file}:{number}", line) for number, line in lines]
    fields = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in fields} for row in rows]


def _row(where: str, place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise SuiteError(where, f"{place}: not JSON: {exc}", f'One object a line: {{"{FIELD}": "…"}}') from None
    if not isinstance(row, Mapping):
        raise SuiteError(where, f"{place}: not an object", f'One object a line: {{"{FIELD}": "…"}}')
    found = row.get(FIELD)
    if not isinstance(found, str) or not found.strip():
        what = f"{place}: no text under '{FIELD}'" if FIELD in row else f"{place}: no key '{FIELD}'"
        raise SuiteError(where, what, f"Keys: {', '.join(row) or 'none'}", did_you_mean(FIELD, row))
    return dict(row)
