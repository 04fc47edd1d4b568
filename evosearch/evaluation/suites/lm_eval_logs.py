"""Suppression of the logs and progress bars of lm-eval and datasets."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lm_eval", "datasets", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval, datasets and transformers inside the block; errors are still raised."""
    import datasets

    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars = datasets.utils.are_progress_bars_disabled()
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
