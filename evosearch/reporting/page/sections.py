"""The sections of the page, in their order."""

from collections.abc import Callable, Sequence

from evosearch.reporting.page.coefficients import coefficients
from evosearch.reporting.page.contents import Section
from evosearch.reporting.page.curve import curve
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.failures import failures
from evosearch.reporting.page.forest import forest
from evosearch.reporting.page.front import front
from evosearch.reporting.page.guard_table import guards
from evosearch.reporting.page.importance import importance
from evosearch.reporting.page.recipe_text import recipe
from evosearch.reporting.page.reproduction import reproduction
from evosearch.reporting.page.route_drawing import route
from evosearch.reporting.page.spending import spending
from evosearch.reporting.page.split_changes import splits
from evosearch.reporting.page.verdict import verdict

BEFORE_MODELS: tuple[Callable[[Facts], Section], ...] = (
    verdict,
    forest,
    curve,
    splits,
    coefficients,
    route,
    importance,
)
AFTER_MODELS: tuple[Callable[[Facts], Section], ...] = (front, guards, spending, failures, recipe, reproduction)


def sections(facts: Facts, of_models: Sequence[Section]) -> list[Section]:
    """Return all sections.

    Args:
        facts: The search.
        of_models: Sections for which the models are opened, or why they are left out.
    """
    before, after = ([make(facts) for make in makers] for makers in (BEFORE_MODELS, AFTER_MODELS))
    return [*before, *of_models, *after]
