"""evosearch: search for merge recipes of language models, by evolution or by gradients.

The names in `__all__` are the public API: the commands as functions with typed results, the two decorators for merge
methods and optimizers, and the types that these take and return. Everything else in the package is private by
convention and may change in any release.

Importing evosearch loads none of its dependencies: a name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evosearch.api import (
        analyze,
        check,
        diff,
        export,
        init,
        leaderboard,
        load_recipe,
        load_spec,
        merge,
        push,
        report,
        run,
        score,
        verify,
    )
    from evosearch.errors import EvosearchError, InputError
    from evosearch.merging.registry import merge_method
    from evosearch.preflight.check import CheckReport
    from evosearch.recipe.shapes import Param
    from evosearch.reporting.export import ExportResult
    from evosearch.reporting.leaderboard import Leaderboard
    from evosearch.reporting.report import RunReport
    from evosearch.search.optimizers.registry import Option, optimizer
    from evosearch.search.progress import Progress, Watcher
    from evosearch.service.analyze import AnalyzeReport
    from evosearch.service.diff import DiffReport
    from evosearch.service.init_draft import InitReport
    from evosearch.service.merge import MergeReport
    from evosearch.service.push import PushReport
    from evosearch.service.report_page import PageResult
    from evosearch.service.score import ScoreReport
    from evosearch.service.verify import VerifyReport

__version__ = "0.2.0"
__all__ = [
    "AnalyzeReport",
    "CheckReport",
    "DiffReport",
    "EvosearchError",
    "ExportResult",
    "InitReport",
    "InputError",
    "Leaderboard",
    "MergeReport",
    "Option",
    "PageResult",
    "Param",
    "Progress",
    "PushReport",
    "RunReport",
    "ScoreReport",
    "VerifyReport",
    "Watcher",
    "analyze",
    "check",
    "diff",
    "export",
    "init",
    "leaderboard",
    "load_recipe",
    "load_spec",
    "merge",
    "merge_method",
    "optimizer",
    "push",
    "report",
    "run",
    "score",
    "verify",
]

_MODULES = {  # the other names, which are the commands, are in `evosearch.api`
    "evosearch.errors": ("EvosearchError", "InputError"),
    "evosearch.merging.registry": ("merge_method",),
    "evosearch.preflight.check": ("CheckReport",),
    "evosearch.recipe.shapes": ("Param",),
    "evosearch.reporting.export": ("ExportResult",),
    "evosearch.reporting.leaderboard": ("Leaderboard",),
    "evosearch.reporting.report": ("RunReport",),
    "evosearch.search.optimizers.registry": ("Option", "optimizer"),
    "evosearch.search.progress": ("Progress", "Watcher"),
    "evosearch.service.analyze": ("AnalyzeReport",),
    "evosearch.service.diff": ("DiffReport",),
    "evosearch.service.init_draft": ("InitReport",),
    "evosearch.service.merge": ("MergeReport",),
    "evosearch.service.push": ("PushReport",),
    "evosearch.service.report_page": ("PageResult",),
    "evosearch.service.score": ("ScoreReport",),
    "evosearch.service.verify": ("VerifyReport",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'evosearch' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(_MODULE_OF.get(name, "evosearch.api")), name)
    return found


def __dir__() -> list[str]:
    """List the public names, also those that were not used yet."""
    return sorted({*globals(), *__all__})
