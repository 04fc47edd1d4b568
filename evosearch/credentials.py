"""How a URL is told in messages: without what may be a secret. Every room that names one uses this."""

import re

# In a text a URL ends at a space; at a later one, where a colon that begins no port does begin a password.
_URL = re.compile(r"[\w+.-]*://(?:[^/\s@\[:]*:(?!\d)[^@\n]*@)?\S+")
_BEFORE = re.compile(r"[\w+.-]*:?//")  # a scheme; that a colon is missing makes no URL, and hides no password
_WEB = re.compile(r"https?:", re.IGNORECASE)
_FILE = re.compile(r"sqlite(\+\w+)?:", re.IGNORECASE)  # its path and settings hold no secret
_NAME = re.compile(r"[\w.%-]+")
HIDDEN = "***"


def hidden(url: str) -> str:
    """`postgresql://user:secret@host/db?key=secret` as `postgresql://***@host/db?***`.

    Whatever stands before the last `@` may be a password: programs differ in where they see one end. A database's user
    is shown where nothing else stands there; that of a web address may be a token. A path of SQLite's is shown whole.
    """
    if _FILE.match(url):
        return url
    before = _BEFORE.match(url)
    scheme = before[0] if before else ""
    account, at, place = url[len(scheme) :].rpartition("@")
    place, mark, _ = place.partition("?")
    shown = account if _NAME.fullmatch(account) and scheme and not _WEB.match(scheme) else HIDDEN
    return f"{scheme}{shown + at if at else ''}{place}{mark + HIDDEN if mark else ''}"


def hidden_in(text: str) -> str:
    """A text with each URL in it told so; what ends a sentence or a bracket behind one is kept."""
    return _URL.sub(_told, text)


def _told(found: re.Match[str]) -> str:
    url = found[0].rstrip("'\"),.;:")
    return hidden(url) + found[0][len(url) :]
