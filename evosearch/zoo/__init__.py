"""The embedded models of the quickstart."""


def register() -> None: ...
