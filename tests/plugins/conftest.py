"""The example package, installed for the duration of one test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PACKAGE = "evosearch_plugin_example"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the package and its metadata on `sys.path`, and forget its modules afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def _own_methods() -> None:
    """Load the other methods first, while the package is not installed."""
    from evosearch.merging import registry

    registry.specs()


@pytest.fixture
def with_methods(_own_methods: None, installed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Load entry points again, with those of the package, and unregister its methods afterwards."""
    from evosearch.merging import registry

    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    registry._load.cache_clear()
    yield
    registry._load.cache_clear()


@pytest.fixture
def with_optimizers(with_methods: None) -> Iterator[None]:
    """The same for its optimizers; a search loads the methods, too."""
    from evosearch.search.optimizers import registry

    registry._third_party.cache_clear()
    yield
    registry._third_party.cache_clear()
    for name in registry._entries.keys() - set(registry._built_in()):
        del registry._entries[name]
