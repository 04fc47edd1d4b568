"""Visible forms of control characters, for all text that is shown on a terminal.

Texts of models, recipes, suites, ledgers and logs may contain sequences that move the cursor, set a terminal's title,
or reverse the order of what follows.
"""

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 except tab and newline, DEL, C1
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # direction of text, other line ends
    "\ud800-\udfff]"  # unpaired surrogates, which cannot be printed
)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    r"""Return the text with control characters written as `\x1b` or `\u202e`; tabs and newlines are kept."""
    return _CONTROL.sub(_escaped, text)


def without_colors(text: str) -> str:
    """Return a log's text without the sequences that color it."""
    return _COLOR.sub("", text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
