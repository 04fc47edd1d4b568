"""Language identification of generated answers, for tasks whose `language` key makes other languages wrong.

The first paper on evolved merges scored Japanese mathematics this way: a correct number with reasoning in English did
not count (Akiba et al. 2024, arXiv:2403.13187). The identifier is py3langid, a deterministic naive Bayes model over
byte n-grams that ships with the package, so it needs no network.

An answer is in another language if the identifier considers that language at least twenty times as likely. A text that
is too short to identify (`42`, `x = 5`, the empty text) therefore counts as the required language and is scored by its
metric alone; `The answer is 18.` is long enough to be recognized as not Japanese. The complete generated text is
examined, before filters. Closely related languages (such as Danish and Norwegian) may be confused.
"""

from functools import cache
from importlib import metadata
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean

ODDS = 20.0  # how many times as likely another language must be
_NONE = "zxx"  # the identifier's label for numbers, markup and the like


def in_language(text: str, language: str) -> bool:
    """Return whether a text is plausibly in a language, given by its ISO 639 code."""
    likely = _probabilities(text)
    best = max(likely, key=lambda code: likely[code])
    return best == _NONE or likely[best] < ODDS * likely[language]


def check_language(where: str, language: str, name: str, task: Any) -> None:
    """Check a suite task's `language` key.

    Args:
        where: The task's key in the suite, for errors.
        language: The key's value.
        name: Name of the lm-eval task, for errors.
        task: The lm-eval task.

    Raises:
        SuiteError: The task does not generate, the identifier is not installed, or it does not know the language.
    """
    where = join(where, "language")
    if task.OUTPUT_TYPE != "generate_until":
        what = f"'{name}' does not generate: its output type is {task.OUTPUT_TYPE}"
        raise SuiteError(where, what, next="Remove this key")
    try:
        known = sorted({str(code) for code in _identifier().labels} - {_NONE})
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != "py3langid":
            raise
        what = "language identification requires py3langid, which is not installed"
        raise SuiteError(where, what, next="Install it with `pip install 'evosearch[language]'`") from None
    if language not in known:
        allowed = f"ISO 639 codes: {', '.join(known)}"
        raise SuiteError(where, f"unknown language '{language}'", allowed, did_you_mean(language, known))


def identifier_version() -> str:
    """Return name and version of the identifier, which is part of a task's fingerprint."""
    return f"py3langid {metadata.version('py3langid')}"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes two seconds; optional dependency

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _probabilities(text: str) -> dict[str, float]:
    return {str(code): float(value) for code, value in _identifier().rank(text)}
