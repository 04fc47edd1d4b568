"""Redaction of secrets in URLs, for every message that contains a URL."""

import re

# A URL ends at a space. A colon that is not followed by a port starts a password, which may contain spaces.
_URL = re.compile(r"[\w+.-]*://(?:[^/\s@\[:]*:(?!\d)[^@\n]*@)?\S+")
_SCHEME = re.compile(r"[\w+.-]*:?//")  # the colon is optional: without it the password must still be redacted
_WEB = re.compile(r"https?:", re.IGNORECASE)
_FILE = re.compile(r"sqlite(\+\w+)?:", re.IGNORECASE)  # neither path nor settings contain secrets
_NAME = re.compile(r"[\w.%-]+")
HIDDEN = "***"


def hidden(url: str) -> str:
    """Redact a URL: `postgresql://user:secret@host/db?key=secret` becomes `postgresql://***@host/db?***`.

    Everything before the last `@` may be a password, because programs disagree on where it ends. A database user is
    shown if nothing else precedes the `@`; the user of a web address may be a token. SQLite URLs are unchanged.
    """
    if _FILE.match(url):
        return url
    matched = _SCHEME.match(url)
    scheme = matched[0] if matched else ""
    account, at, place = url[len(scheme) :].rpartition("@")
    place, mark, _ = place.partition("?")
    shown = account if _NAME.fullmatch(account) and scheme and not _WEB.match(scheme) else HIDDEN
    return f"{scheme}{shown + at if at else ''}{place}{mark + HIDDEN if mark else ''}"


def hidden_in(text: str) -> str:
    """Redact every URL in a text; punctuation after a URL is kept."""
    return _URL.sub(_redacted, text)


def _redacted(found: re.Match[str]) -> str:
    url = found[0].rstrip("'\"),.;:")
    return hidden(url) + found[0][len(url) :]
