"""The token that is shown to a Ray cluster, looked for where Ray itself looks."""

import os
from pathlib import Path

PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
DEFAULT = Path("~/.ray/auth_token")


def is_shown() -> bool:
    """Whether a token is to be shown: RAY_AUTH_MODE=disabled says that the cluster has none."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def find() -> str | None:
    """The token; None where none is set anywhere.

    Raises:
        OSError, ValueError: the file that RAY_AUTH_TOKEN_PATH names cannot be read, or is empty: another is not looked
            for then, and Ray ends a process that finds none in it.
    """
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        found = Path(named).read_text(encoding="utf-8").strip()
        if not found:
            raise ValueError("it is empty")
        return found
    try:
        return DEFAULT.expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, RuntimeError, ValueError):  # none, no home, or no text
        return None
