"""Reading of task YAMLs: regular files of bounded size and depth.

lm-eval parses them with libyaml, which recurses in native code: a file of 100,000 brackets ends the process without a
message. So the depth is known before the parser sees a file.
"""

import re
from pathlib import Path

import yaml

from evosearch.documents import MAX_BYTES
from evosearch.errors import SuiteError
from evosearch.strict_yaml import MAX_DEPTH
from evosearch.untrusted import boundary, decode, read_bytes

_QUICK = 300  # levels that libyaml and PyYAML read without harm
_INDENTATION = re.compile(rb"^[ \t?:-]+", re.MULTILINE)  # every block that begins on a line begins within these


def read_task_yaml(path: Path) -> bytes:
    """Read a task's YAML, which need not be valid.

    Raises:
        SuiteError: The file is unreadable, not regular, too large, or nested too deeply; if it may be, also if it is
            not valid YAML.
    """
    data = read_bytes(path, SuiteError, MAX_BYTES)
    if _most_levels(data) > _QUICK:
        _check_depth(data, str(path))
    return data


def _most_levels(data: bytes) -> int:
    """Return an upper bound of the depth: opening brackets anywhere, and the longest indentation of a line."""
    indented = max((len(found) for found in _INDENTATION.findall(data)), default=0)
    return data.count(b"[") + data.count(b"{") + indented


def _check_depth(data: bytes, where: str) -> None:
    """Check the depth by the events of PyYAML's own parser, which does not recurse."""
    text, level = decode(data, where, SuiteError), 0
    with boundary(where, SuiteError, "invalid YAML"):
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                level += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                level -= 1
            if level > MAX_DEPTH:
                line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise SuiteError(where, f"invalid YAML: {line}nested more than {MAX_DEPTH} levels deep")
