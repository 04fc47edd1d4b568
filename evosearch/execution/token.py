"""Lookup of the token of a Ray cluster, in the same places as Ray itself."""

import os
from pathlib import Path

SOURCES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
DEFAULT = Path("~/.ray/auth_token")


def is_required() -> bool:
    """Return whether a token is sent; RAY_AUTH_MODE=disabled means that the cluster has none."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def find() -> str | None:
    """Return the token, or None if none is set.

    Raises:
        OSError, ValueError: The file that RAY_AUTH_TOKEN_PATH names is unreadable or empty. Ray exits in this case
            instead of looking further, so it must not count as a missing token.
    """
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        found = Path(named).read_text(encoding="utf-8").strip()
        if not found:
            raise ValueError("the file is empty")
        return found
    try:
        return DEFAULT.expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, RuntimeError, ValueError):  # no file, no home folder, or not text
        return None
