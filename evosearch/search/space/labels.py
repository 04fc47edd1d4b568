"""Short names of models, unique within a search: they name its dimensions and choices in leaderboards and ledgers."""

import re
from collections import Counter
from collections.abc import Sequence


def labels(models: Sequence[str]) -> dict[str, str]:
    """Return a short name for every model: the last part of its reference, numbered if it is not unique.

    >>> labels(["zoo:tiny/sort", "org/reverse", "other/reverse"])
    {'zoo:tiny/sort': 'sort', 'org/reverse': 'reverse~1', 'other/reverse': 'reverse~2'}
    """
    short = [_plain(model.rstrip("/").rpartition("/")[2]) for model in models]
    shared = Counter(short)
    return {
        model: name if shared[name] == 1 else f"{name}~{index}"
        for index, (model, name) in enumerate(zip(models, short, strict=True))
    }


def _plain(name: str) -> str:
    """Reduce a name to at most 32 letters, digits and `.-_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:32]
