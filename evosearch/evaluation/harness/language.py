"""Which language an answer is written in: for tasks whose `language` key makes answers in another language wrong.

Japanese mathematics, for one, was scored so where merges were first evolved: a right number reached in English did not
count (Akiba et al. 2024, arXiv:2403.13187). Here the identifier is py3langid's, whose naive Bayes model over byte
n-grams is part of the package: nothing is looked up, and the same text always has the same language.

An answer is in another language where the identifier holds some other one for at least twenty times as likely. So a
text too short or too bare to tell (`42`, `x = 5`, nothing at all) stays in the language that was asked for, and is
judged by its metric alone; `The answer is 18.` is long enough not to be Japanese. All that was generated is looked at,
before filters. Close relatives (Danish and Norwegian, say) may be told apart wrongly.
"""

from functools import cache
from importlib import metadata
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean

ODDS = 20.0  # another language must be so many times as likely
_NONE = "zxx"  # the identifier's label of numbers, markup and the like


def in_language(text: str, language: str) -> bool:
    """Whether a text may be in a language, by its ISO 639 code."""
    likely = _probabilities(text)
    best = max(likely, key=lambda code: likely[code])
    return best == _NONE or likely[best] < ODDS * likely[language]


def check_language(where: str, language: str, name: str, task: Any) -> None:
    """Check a suite task's `language` key.

    Args:
        where: the task's key in the suite.
        name: the lm-eval task's.

    Raises:
        SuiteError: the task generates nothing, the identifier is not installed, or it does not know the language.
    """
    where = join(where, "language")
    if task.OUTPUT_TYPE != "generate_until":
        what = f"'{name}' generates nothing: its output type is {task.OUTPUT_TYPE}"
        raise SuiteError(where, what, next="Remove this key")
    try:
        known = sorted({str(code) for code in _identifier().labels} - {_NONE})
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != "py3langid":
            raise
        what = "telling languages needs the package py3langid, which is not installed"
        raise SuiteError(where, what, next="Install it with `pip install 'evosearch[language]'`") from None
    if language not in known:
        allowed = f"Codes of ISO 639: {', '.join(known)}"
        raise SuiteError(where, f"unknown language '{language}'", allowed, did_you_mean(language, known))


def identifier_version() -> str:
    """What languages are told by: part of what a resumed search compares."""
    return f"py3langid {metadata.version('py3langid')}"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # two seconds, and only where a suite asks for it

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _probabilities(text: str) -> dict[str, float]:
    return {str(code): float(value) for code, value in _identifier().rank(text)}
