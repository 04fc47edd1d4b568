"""Numeric answers in Japanese texts: the last number of a text.

Numbers are compared by value: full-width digits, thousands separators and trailing zeros make no difference. lm-eval
imports this file by its path, so it depends only on the standard library.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"(?<![0-9])-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])-?\.[0-9]+")
_MINUS = str.maketrans("−‐‑–", "----")
NONE = "[none]"  # differs from every number


def last_number(resps: Sequence[Sequence[str]], docs: Sequence[Any]) -> list[list[str]]:
    """Return the last number of each response in plain form; an lm-eval filter."""
    return [[_last(text) for text in of_one] for of_one in resps]


def target(doc: dict[str, Any]) -> str:
    """Return the right answer of a document in plain form, whether it is stored as a number or as text."""
    return _last(str(doc["answer_number"]))


def _last(text: str) -> str:
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).translate(_MINUS))
    return _plain(found[-1]) if found else NONE


def _plain(number: str) -> str:
    """Convert `-1,800.50` to `-1800.5`."""
    value = Decimal(number.replace(",", ""))
    return "0" if value == 0 else format(value.normalize(), "f")
